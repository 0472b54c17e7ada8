"""`mt eval score`: a Hugging Face classifier as a program for `mt data classify`.

    mt data classify --command "mt eval score --classifier DIR --label toxic" ...

In, on standard input: lines {"text": ...}. Out: the label's probability for each, one number a line, in the
same order. DIR is a directory that transformers' AutoModelForSequenceClassification reads; nothing is
downloaded. Texts longer than the classifier's positions are cut.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from ..core import paths
from ..core.config import UserError, check, configuration, option
from ..train.checkpoint.huggingface import indexed_files
from .lm import batched


@configuration()
class ScoreConfig:
    """The settings of `mt eval score`."""

    classifier: str = option(help="directory of a Hugging Face sequence classifier", role="input")
    label: str | None = option(None, "the label whose probability is the score (default: the last)")
    batch_size: int = option(32, "texts in a forward pass", role="runtime")

    def __post_init__(self):
        check((self.batch_size >= 1, f"batch_size = {self.batch_size} must be at least 1"))


def score(config: ScoreConfig) -> None:
    """Writes a number for every line of standard input."""
    classifier = HuggingFaceClassifier(config.classifier, config.label)
    for lines in batched((line for line in sys.stdin if line.strip()), config.batch_size):
        for value in classifier.probabilities([_text(line) for line in lines]):
            print(f"{value:.6g}")


def _text(line: str) -> str:
    try:
        return json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise UserError(
            f'standard input: {line.strip()[:40]!r} is no line {{"text": ...}}; give lines as `mt data'
            " classify` writes them"
        ) from None


class HuggingFaceClassifier:
    """A sequence classifier of transformers, on the GPU if there is one.

    label: in any case; None: the last one. Raises UserError for a directory or a label that does not exist.
    """

    def __init__(self, directory: str, label: str | None):
        import transformers

        if not (Path(directory) / "config.json").exists():
            raise UserError(
                f"{directory}: has no config.json; give the directory of a Hugging Face sequence classifier"
            )
        paths.regular_files(directory)
        for index in Path(directory).glob("*.index.json"):
            indexed_files(index)  # refuses names that lead out of the directory
        transformers.utils.logging.disable_progress_bar()
        try:
            # without the last argument transformers asks on the terminal whether to run the folder's code
            only_data: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **only_data)
            self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
                directory, **only_data
            ).eval()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{directory}: transformers cannot read it as a sequence classifier"
                f" ({str(error).splitlines()[0]})"
            ) from None
        names = {name.lower(): number for number, name in self.model.config.id2label.items()}
        if label is not None and label.lower() not in names:
            raise UserError(
                f"label = {label} is none of {directory}'s labels; choose one of {', '.join(names)}"
            )
        self.column = names[label.lower()] if label is not None else len(names) - 1
        # with one label, or labels that do not exclude each other, each logit gives its own probability
        self.independent_labels = (
            len(names) == 1 or self.model.config.problem_type == "multi_label_classification"
        )
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    @torch.inference_mode()
    def probabilities(self, texts: list[str]) -> list[float]:
        """The label's probability for each text."""
        longest = min(
            self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512)
        )
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.model.device)
        logits = self.model(**batch).logits.float()
        probabilities = logits.sigmoid() if self.independent_labels else logits.softmax(1)
        return probabilities[:, self.column].tolist()
