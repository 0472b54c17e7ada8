"""The families of models, and the functions in which they differ: one Family for each, in one dict.

Everything outside this folder uses `family_of(config)` instead of the family's name or the model's class. A
new family is a file with its model and an entry here; config.py lists the settings that it takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import torch

from ...core.config import UserError, nearest
from ...tokenizer.tokenizer import Tokenizer
from .base import Model
from .bert import BERT_STAGES, Bert
from .biencoder import FROM_BERT, Biencoder
from .bloom import BLOOM_ARCHITECTURES
from .config import ModelConfig, ResolvedModelConfig
from .datasets import (
    Datasets,
    NumSamples,
    SampleConfig,
    bert_datasets,
    causal_datasets,
    ict_datasets,
    t5_datasets,
)
from .decoder_architectures import DECODER_ARCHITECTURES, nearest_architecture
from .decoder_blocks import layer_kinds
from .deepseek import DEEPSEEK_ARCHITECTURES
from .falcon import FALCON_ARCHITECTURES, Falcon
from .flops import (
    Flops,
    bert_head_flops,
    biencoder_block_flops,
    biencoder_head_flops,
    causal_block_flops,
    encoder_block_flops,
    encoder_decoder_block_flops,
    encoder_decoder_head_flops,
    lm_head_flops,
)
from .foreign_names import (
    BERT_ARCHITECTURES,
    GPT_ARCHITECTURES,
    MEGATRON_GPT,
    T5_ARCHITECTURES,
    Architecture,
    MegatronNames,
)
from .gpt import GPT
from .gpt_neox import NEOX_ARCHITECTURES, GPTNeoX
from .inputs import (
    Collator,
    MicroBatch,
    Samples,
    collate_bert,
    collate_causal,
    collate_pairs,
    collate_t5,
    empty_bert,
    empty_causal,
    empty_pairs,
    empty_t5,
)
from .retro import CAUSAL_STAGES, FROM_GPT, Retro
from .stage import StageRules
from .t5 import T5, T5_STAGES
from .warm_start import WarmStart

Collate = Callable[[Collator, int, Samples], MicroBatch]


@dataclasses.dataclass(frozen=True)
class Family:
    """What differs between families of models.

    build: a model without values. datasets: the train, valid and test datasets. collate: samples ->
    MicroBatch. empty: a MicroBatch of those shapes, (config, samples, seq_length, decoder_seq_length).
    block_flops, head_flops: forward FLOPs of a sample, (config, seq_length, decoder_seq_length). num_blocks:
    blocks that a sample runs through. lengths: the data settings that say how long its sequences are. stages:
    how a model is cut into pipeline stages; None: it is not. causal: whether a token's state depends on the
    tokens before it alone, so that documents can be packed and sequences divided over context-parallel ranks.
    text: how its models write text, if they do. data: the settings of SampleConfig that its samples use and
    those of other families do not. huggingface: its architectures by the `model_type` of their config.json.
    export_as: the one of these that is nearest to a model. megatron: Megatron-LM's names of its modules.
    encoder: whether a model embeds a text, or a query and a block by two towers. warm_start: how a model can
    start from a checkpoint of another kind, (its settings, those of the checkpoint's model).
    """

    build: Callable[[ResolvedModelConfig], Model]
    datasets: Callable[[ModelConfig, SampleConfig, Tokenizer, NumSamples], Datasets]
    collate: Collate
    empty: Callable[[ResolvedModelConfig, int, int, int], MicroBatch]
    block_flops: Callable[[ResolvedModelConfig, int, int], list[Flops]]
    head_flops: Callable[[ResolvedModelConfig, int, int], Flops]
    num_blocks: Callable[[ResolvedModelConfig], int]
    stages: StageRules | None
    lengths: tuple[str, ...] = ("seq_length",)
    causal: bool = False
    text: Literal["decoder", "encoder-decoder"] | None = None
    data: frozenset[str] = frozenset()
    huggingface: Mapping[str, Architecture] = dataclasses.field(default_factory=dict)
    export_as: Callable[[ResolvedModelConfig], str] | None = None
    megatron: MegatronNames | None = None
    encoder: Literal["single", "dual"] | None = None
    warm_start: Callable[[ModelConfig, ModelConfig], WarmStart | None] = lambda config, source: None


def _retro_from_gpt(config: ModelConfig, source: ModelConfig) -> WarmStart | None:
    is_gpt = family_of(source).text == "decoder" and not source.retro_add_retriever
    return FROM_GPT if config.retro_add_retriever and is_gpt else None


def _build_causal(config: ResolvedModelConfig) -> Model:
    return Retro(config) if config.retro_add_retriever else GPT(config)


GPT_FAMILY = Family(
    build=_build_causal,
    datasets=causal_datasets,
    collate=collate_causal,
    empty=empty_causal,
    block_flops=causal_block_flops,
    head_flops=lm_head_flops,
    num_blocks=lambda config: len(layer_kinds(config)),
    stages=CAUSAL_STAGES,
    causal=True,
    text="decoder",
    data=frozenset({"data_folder"}),
    huggingface={
        **GPT_ARCHITECTURES,
        **DECODER_ARCHITECTURES,
        **DEEPSEEK_ARCHITECTURES,
        **BLOOM_ARCHITECTURES,
    },
    export_as=nearest_architecture,
    megatron=MEGATRON_GPT,
    warm_start=_retro_from_gpt,
)
FAMILIES = {
    "gpt": GPT_FAMILY,
    "gpt_neox": dataclasses.replace(
        GPT_FAMILY,
        build=GPTNeoX,
        huggingface=NEOX_ARCHITECTURES,
        export_as=lambda config: "gpt_neox",
        megatron=None,
    ),
    "falcon": dataclasses.replace(
        GPT_FAMILY,
        build=Falcon,
        huggingface=FALCON_ARCHITECTURES,
        export_as=lambda config: "falcon",
        megatron=None,
    ),
    "bert": Family(
        build=Bert,
        datasets=bert_datasets,
        collate=collate_bert,
        empty=empty_bert,
        block_flops=encoder_block_flops,
        head_flops=bert_head_flops,
        num_blocks=lambda config: config.num_layers,
        stages=BERT_STAGES,
        huggingface=BERT_ARCHITECTURES,
        export_as=lambda config: "bert",
        encoder="single",
    ),
    "t5": Family(
        build=T5,
        datasets=t5_datasets,
        collate=collate_t5,
        empty=empty_t5,
        block_flops=encoder_decoder_block_flops,
        head_flops=encoder_decoder_head_flops,
        num_blocks=lambda config: config.num_layers + config.decoder_layers,
        stages=T5_STAGES,
        lengths=("seq_length", "decoder_seq_length"),
        text="encoder-decoder",
        huggingface=T5_ARCHITECTURES,
        export_as=lambda config: "t5",
    ),
    "ict": Family(
        build=Biencoder,
        datasets=ict_datasets,
        collate=collate_pairs,
        empty=empty_pairs,
        block_flops=biencoder_block_flops,
        head_flops=biencoder_head_flops,
        num_blocks=lambda config: 2 * config.num_layers,
        stages=None,
        data=frozenset({"titles_data_path"}),
        encoder="dual",
        warm_start=lambda config, source: FROM_BERT if family_of(source).encoder == "single" else None,
    ),
}


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration; raises UserError for an unknown name."""
    if config.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(
            f"model.family = {config.family} must be one of {known}{nearest(config.family, FAMILIES)}"
        )
    return FAMILIES[config.family]


def build_model(config: ResolvedModelConfig) -> Model:
    """The model of a configuration. Its weights have no values yet: see layers.initialize."""
    return family_of(config).build(config)


def count_parameters(config: ResolvedModelConfig) -> int:
    """Parameters of the whole model; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config).parameters())


def sequence_lengths(config: ModelConfig, data: SampleConfig) -> dict[str, int]:
    """Tokens of a model's sequences, by the data setting that says so."""
    return {name: getattr(data, name) for name in family_of(config).lengths}


def families_with(has: Callable[[Family], bool]) -> str:
    """`model.family = gpt or t5`, for messages: the families of which something is true."""
    return "model.family = " + " or ".join(name for name, family in FAMILIES.items() if has(family))


def build_samples(
    model: ModelConfig, data: SampleConfig, tokenizer: Tokenizer, num_samples: NumSamples
) -> Datasets:
    """The train, valid and test datasets of a model. num_samples: see gpt_dataset.build_datasets."""
    return family_of(model).datasets(model, data, tokenizer, num_samples)
