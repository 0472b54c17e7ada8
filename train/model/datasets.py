"""The train, valid and test datasets of each family, and SampleConfig, their settings.

See indexed.gpt_dataset.build_datasets for num_samples and for the three datasets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from ...core.config import configuration, option
from ...indexed.bert_dataset import BertConfig, build_bert_datasets
from ...indexed.gpt_dataset import DataConfig, Dataset, build_datasets
from ...indexed.ict_dataset import IctConfig, build_ict_datasets
from ...indexed.instruct_dataset import InstructConfig, build_instruct_datasets
from ...indexed.t5_dataset import T5Config, build_t5_datasets
from ...tokenizer.tokenizer import Tokenizer
from .config import ModelConfig

Datasets = tuple[Dataset | None, ...]
NumSamples = Sequence[int | None]


@configuration(group="data")
class SampleConfig(T5Config, IctConfig, InstructConfig):
    """The data settings of training: those that all families share, and those of the samples of some."""

    retro_project_dir: str | None = option(
        None, "Retro: the neighbours of the samples, the output of `mt retro neighbors`", role="input"
    )

    def __post_init__(self):
        DataConfig.__post_init__(self)  # the settings of a kind of samples are checked where these are built


C = TypeVar("C", bound=DataConfig)


def causal_datasets(
    model: ModelConfig, data: SampleConfig, tokenizer: Tokenizer, num_samples: NumSamples
) -> Datasets:
    """Samples of a causal language model: consecutive tokens, or the questions of data.data_folder."""
    if data.data_folder is not None:
        return build_instruct_datasets(data, tokenizer, num_samples)
    return build_datasets(data, num_samples)


def bert_datasets(
    model: ModelConfig, data: SampleConfig, tokenizer: Tokenizer, num_samples: NumSamples
) -> Datasets:
    """Samples of BERT: segments with masked words."""
    config = _settings(BertConfig, data, bert_binary_head=model.bert_binary_head)
    return build_bert_datasets(config, tokenizer, num_samples)


def t5_datasets(
    model: ModelConfig, data: SampleConfig, tokenizer: Tokenizer, num_samples: NumSamples
) -> Datasets:
    """Samples of T5: a text with masked spans, and the spans."""
    return build_t5_datasets(_settings(T5Config, data), tokenizer, num_samples)


def ict_datasets(
    model: ModelConfig, data: SampleConfig, tokenizer: Tokenizer, num_samples: NumSamples
) -> Datasets:
    """Samples of the inverse cloze task: a sentence as the query, and the block that it is from."""
    return build_ict_datasets(_settings(IctConfig, data), tokenizer, num_samples)


def _settings(kind: type[C], data: SampleConfig, **more: object) -> C:
    """The settings of one kind of samples, checked."""
    names = [f.name for f in dataclasses.fields(kind) if f.name not in more]
    settings: dict[str, Any] = {name: getattr(data, name) for name in names} | more
    return kind(**settings)
