"""`mt eval score`: a Hugging Face classifier as a program for `mt data classify`.

    mt data classify --command "mt eval score --classifier DIR --label toxic" ...

In, on standard input: lines {"text": ...}. Out: the label's probability for each, one number a line, in the
same order. DIR is a directory that transformers' AutoModelForSequenceClassification reads; nothing is
downloaded. Texts longer than the classifier's positions are cut.

The directory may come from a stranger. Its JSON files are read in bounded memory, and the sizes in
config.json are compared with the headers of its weights, before transformers sees them. What transformers
raises for the rest is one line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch

from ..core import paths
from ..core.config import UserError, check, configuration, option, shown
from ..core.parsing import SETTINGS_BYTES, Range, check_value, read_json
from ..core.text_lines import read_texts
from ..tokenizer.vocabulary import read_tokenizer_json
from ..train.checkpoint.huggingface import SafetensorsDirectory
from ..train.checkpoint.safe_reader import load_torch_file
from ..train.model.config import MOST_LAYERS
from .lm import batched

MOST_SIZE = 1 << 20  # of a batch; of a number in config.json, or the numbers in all weights if these are more
REMEDY = "give the directory of a Hugging Face sequence classifier"


@configuration()
class ScoreConfig:
    """The settings of `mt eval score`."""

    classifier: str = option(help="directory of a Hugging Face sequence classifier", role="input")
    label: str | None = option(None, "the label whose probability is the score (default: the last)")
    batch_size: int = option(32, "texts in a forward pass", role="runtime")

    def __post_init__(self):
        check(
            (
                1 <= self.batch_size <= MOST_SIZE,
                f"batch_size = {self.batch_size} must be at least 1, and at most {MOST_SIZE:,}",
            )
        )


def score(config: ScoreConfig) -> None:
    """Writes a number for every line of standard input."""
    classifier = HuggingFaceClassifier(config.classifier, config.label)
    for texts in batched(read_texts(sys.stdin.buffer), config.batch_size):
        for value in classifier.probabilities(texts):
            print(f"{value:.6g}")


class ClassifierJson(TypedDict, total=False):
    """The keys of a classifier's config.json that are looked at here, or by every class of transformers."""

    model_type: str
    architectures: list[str] | None
    id2label: dict[str, str] | None
    label2id: dict[str, int] | None
    num_labels: Annotated[int | None, Range(1, MOST_SIZE)]
    problem_type: str | None
    num_hidden_layers: Annotated[int, Range(1, MOST_LAYERS)]
    max_position_embeddings: Annotated[int | None, Range(1)]
    # a kernel of this name would be fetched from the Hub, and is code
    attn_implementation: None
    _attn_implementation: None


class ClassifierTokenizerJson(TypedDict, total=False):
    """A tokenizer_config.json, as far as it is looked at."""

    model_max_length: Annotated[float | None, Range(1)]
    tokenizer_class: str | None


class HuggingFaceClassifier:
    """A sequence classifier of transformers, on the GPU if there is one.

    label: in any case; None: the last one. Raises UserError for a directory or a label that does not exist.
    """

    def __init__(self, directory: str, label: str | None):
        import transformers

        self.directory = Path(directory)
        stored = _check_files(self.directory)
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        # without the last argument transformers asks on the terminal whether to run the folder's code
        only_data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        kind = transformers.AutoModelForSequenceClassification
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **only_data)
            settings = transformers.AutoConfig.from_pretrained(directory, **only_data)
            with torch.device("meta"):
                empty = kind.from_config(settings, trust_remote_code=False)
            _check_sizes(self.directory, empty.state_dict(), stored)
            self.model, told = kind.from_pretrained(directory, output_loading_info=True, **only_data)
        except UserError:
            raise
        except Exception as error:  # files that nobody checked make transformers raise anything
            raise self._wrong(
                f"transformers cannot read it as a sequence classifier ({_said(error)})"
            ) from None
        missing = sorted(told["missing_keys"])
        layers = sorted(name for name in told["unexpected_keys"] if re.search(r"\.[0-9]+\.", name))
        if missing or layers:
            names = f"has no weight {missing[0]}" if missing else f"has a weight {shown(layers[0])}"
            raise self._wrong(
                f"{names}, in contrast to its config.json; fetch it again, or finetune it first"
            )
        self.model.eval()
        self.column = self._column(label)
        # with one label, or labels that do not exclude each other, each logit gives its own probability
        self.independent_labels = (
            self.model.config.num_labels == 1
            or self.model.config.problem_type == "multi_label_classification"
        )
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self.directory}: {what}")

    def _column(self, label: str | None) -> int:
        """The column of the logits that is a label's; raises UserError for an unknown one."""
        labels: dict[int, str] = self.model.config.id2label
        if sorted(labels) != list(range(self.model.config.num_labels)):
            raise self._wrong(
                f"config.json: its labels have the numbers {shown(sorted(labels))}; fetch it again"
            )
        found = [number for number, name in labels.items() if label is None or name.lower() == label.lower()]
        if label is not None and len(found) > 1:
            raise self._wrong(f"config.json: has the label {shown(label)} {len(found)} times; fetch it again")
        if not found:
            names = ", ".join(name.lower() for name in list(labels.values())[:100])
            raise UserError(f"label = {label} is none of {self.directory}'s labels; choose one of {names}")
        return max(found)

    @property
    def longest(self) -> int:
        """The most tokens of a text."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 512
        return int(min(self.tokenizer.model_max_length, positions))

    @torch.inference_mode()
    def probabilities(self, texts: list[str]) -> list[float]:
        """The label's probability for each text."""
        try:
            batch = self.tokenizer(
                texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
            ).to(self.model.device)
            rows = len(self.model.get_input_embeddings().weight)
            if (token := int(batch["input_ids"].max())) >= rows:  # a GPU would end the process
                raise IndexError(f"token {token} of {rows} tokens")
            logits = self.model(**batch).logits.float()
        except Exception as error:  # the tokenizer's Rust code raises bare Exception
            raise self._wrong(f"its model cannot be applied to a text ({_said(error)})") from None
        probabilities = logits.sigmoid() if self.independent_labels else logits.softmax(1)
        return probabilities[:, self.column].tolist()


def _said(error: Exception) -> str:
    """The first line of a message of another library."""
    lines = str(error).strip().splitlines()
    return shown(lines[0][:200])[1:-1] if lines else type(error).__name__


def _check_files(directory: Path) -> dict[str, torch.Size]:
    """Name -> shape of the weights of a classifier.

    Raises UserError for files that are missing, or that no library may be given.
    """
    if not (directory / "config.json").exists():
        raise UserError(f"{directory}: has no config.json; {REMEDY}")
    paths.regular_files(directory)
    if (directory / "adapter_config.json").exists():
        raise UserError(f"{directory}: is an adapter of another model; merge it into that model first")
    for file in sorted(directory.glob("*.json")):
        if file.name == "tokenizer.json":
            read_tokenizer_json(file)
        elif not isinstance(read_json(file), dict):
            raise UserError(f"{file}: must hold a mapping; {REMEDY}")
    settings = read_json(directory / "config.json", SETTINGS_BYTES)
    check_value(settings, ClassifierJson, directory / "config.json")
    file = directory / "tokenizer_config.json"
    if file.exists():
        for name, value in check_value(read_json(file), ClassifierTokenizerJson, file).items():
            if name.endswith("_file") and isinstance(value, str) and Path(value).exists():
                raise UserError(
                    f"{file}: {name} = {shown(value)}: names a file outside of its folder; fetch it again"
                )
    stored = _stored(directory)
    most = max(MOST_SIZE, sum(map(torch.Size.numel, stored.values())))
    widest = max((size for shape in stored.values() for size in shape), default=0)
    for name, number in _numbers(settings):
        limit = len(stored) if name.endswith("layers") else widest if name == "num_labels" else most
        if abs(number) > limit:
            raise UserError(
                f"{directory / 'config.json'}: {name} = {shown(number)}, and its weights are {len(stored):,}"
                f" tensors; fetch it again"
            )
    return stored


def _numbers(tree: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """(key, value) of the whole numbers in a tree, but those that name a label."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key != "label2id":
                yield from _numbers(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _numbers(value, name)
    elif isinstance(tree, int):
        yield name, tree


def _stored(directory: Path) -> dict[str, torch.Size]:
    """Name -> shape of the weights, from the headers of their files."""
    if any(directory.glob("*.safetensors")):
        return {n: torch.Size(t.shape) for n, t in SafetensorsDirectory(directory).stored.items()}
    found: dict[str, torch.Size] = {}
    for file in sorted(directory.glob("pytorch_model*.bin")):
        state = load_torch_file(file, "transformers")
        if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise UserError(f"{file}: holds no weights; fetch it again")
        found |= {str(name): tensor.shape for name, tensor in state.items()}
    if not found:
        raise UserError(f"{directory}: has no model.safetensors; {REMEDY}")
    return found


def _check_sizes(directory: Path, weights: dict[str, torch.Tensor], stored: dict[str, torch.Size]) -> None:
    """Raises UserError if a model of config.json needs larger weights than there are in the files."""
    numbers = sum(map(torch.Size.numel, stored.values()))
    for name, weight in weights.items():
        if weight.numel() > numbers:
            raise UserError(
                f"{directory / 'config.json'}: gives {name} the shape {tuple(weight.shape)}, and all weights"
                f" hold {numbers:,} numbers; fetch it again"
            )
