"""A BERT with an output layer on the first token's hidden state: a logit for each choice or class.

In: pairs of texts. Each becomes `[CLS] first [SEP] second [SEP]`, the published input of RACE and GLUE, with
token type 0 up to the first [SEP] and 1 after it. A sequence that is too long is cut and ends with [SEP].
Out: logits. A question with choices is one sequence a choice, each with one logit (RACE). A pair with fixed
classes is one sequence (MNLI, QQP).

The checkpoint of a finetuned classifier is a step directory like those of training, whose config.yaml also
names the task.

B examples, R sequences (B x choices), T positions, D hidden, C choices or classes.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.config import UserError, build
from ..indexed.word_pieces import word_pieces
from ..tokenizer.tokenizer import Tokenizer
from ..train.checkpoint.base import Checkpoint
from ..train.checkpoint.native import CheckpointConfig
from ..train.model.base import Model
from ..train.model.bert import Bert
from ..train.model.block import Block
from ..train.model.config import ResolvedModelConfig
from ..train.model.family import family_of
from ..train.model.layers import Linear, initialize
from ..train.parallel.mesh import Mesh, ParallelConfig
from ..train.parallel.parallelize import check_layout, divide_for_inference
from .tasks.examples import Example

MAX_QUESTION_TOKENS = 128  # tokens of a question with an option are cut at this, as in Megatron-LM


class Classifier(Model):
    """BERT, a pooler and an output layer.

    config: of the BERT, resolved. outputs: logits of a sequence: 1 where each choice is a sequence, otherwise
    the number of classes.
    """

    def __init__(self, config: ResolvedModelConfig, outputs: int):
        super().__init__()
        D, std = config.hidden_size, config.init_method_std
        self.config = config
        self.bert = Bert(config, heads=False)
        self.pooler = Linear(D, D, bias=True, std=std)
        self.head = Linear(D, outputs, bias=True, std=std)

    @property  # an attribute would register the blocks, and so name their weights, twice
    def layers(self) -> Iterable[Block]:  # type: ignore[override]
        return self.bert.layers

    def last_norms(self) -> list[nn.Module]:
        return self.bert.last_norms()

    def forward(self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor, choices: int) -> Tensor:
        """(B, C) float32 logits.

        tokens, token_types: (R, T) int64. padding_mask: (R, T) bool, true at tokens. choices: sequences of an
        example.
        """
        pooled = self.pooler(self.bert(tokens, padding_mask, token_types)[:, 0]).tanh()
        logits = self.head(F.dropout(pooled, self.config.hidden_dropout, self.training))
        return logits.float().view(len(tokens) // choices, -1)

    def loss(
        self, tokens: Tensor, token_types: Tensor, padding_mask: Tensor, choices: int, labels: Tensor
    ) -> Tensor:
        """Summed negative log-likelihood in nats, a scalar. labels: (B,) int64."""
        return F.cross_entropy(self(tokens, token_types, padding_mask, choices), labels, reduction="sum")


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """The config.yaml of a finetuned classifier."""

    task: str
    outputs: int
    seq_length: int
    model: ResolvedModelConfig
    checkpoint: CheckpointConfig


def pretrained(
    checkpoint: Checkpoint,
    outputs: int,
    seed: int,
    mesh: Mesh,
    *,
    hidden_dropout: float,
    attention_dropout: float,
) -> tuple[Classifier, Tokenizer]:
    """A classifier on the encoder of a pretrained BERT, and its tokenizer; what the BERT lacks starts from
    `seed`.

    mesh: where it then lies, cut over tensor-parallel ranks; each reads the whole BERT first.
    """
    if family_of(checkpoint.config).encoder != "single":
        raise UserError(
            f"{checkpoint}: is a model of family {checkpoint.config.family}, which cannot be finetuned to"
            " choose; give a BERT"
        )
    tokenizer, weights = checkpoint.load_tokenizer(), checkpoint.encoder_weights()
    model = Classifier(
        dataclasses.replace(
            checkpoint.config, hidden_dropout=hidden_dropout, attention_dropout=attention_dropout
        ),
        outputs,
    )
    initialize(model, seed)
    ours = model.state_dict()
    held = {
        name if name.startswith("pooler.") else f"bert.{name}": weight for name, weight in weights.items()
    }
    model.load_state_dict(ours | {name: weight for name, weight in held.items() if name in ours})
    check_layout(ParallelConfig(tensor_model_parallel_size=mesh.tp.size), model.config, {})
    model.to(mesh.device)
    divide_for_inference(model, mesh)
    return model, tokenizer


def is_finetuned(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is a finetuned classifier's."""
    return "task" in checkpoint.run_settings


def open_classifier(checkpoint: Checkpoint, task: str, mesh: Mesh) -> tuple[Classifier, Tokenizer, int]:
    """(classifier in eval mode, its tokenizer, the tokens of a sequence) of a finetuned checkpoint; cut over
    tensor-parallel ranks.
    """
    if not is_finetuned(checkpoint):
        raise UserError(
            f"{checkpoint}: is no finetuned classifier; finetune it with --pretrained-checkpoint {checkpoint}"
            " --train-data FILE... --output DIR"
        )
    settings = build(Finetuned, (str(checkpoint.path / "config.yaml"), checkpoint.run_settings))
    if settings.task != task:
        raise UserError(
            f"{checkpoint}: was finetuned for {settings.task}, not {task}; evaluate it with `mt eval"
            f" {settings.task}`"
        )
    check_layout(ParallelConfig(tensor_model_parallel_size=mesh.tp.size), settings.model, {})
    model = Classifier(settings.model, settings.outputs).eval().requires_grad_(False).to(mesh.device)
    divide_for_inference(model, mesh)
    checkpoint.load(model, mesh=mesh)
    return model, checkpoint.load_tokenizer(), settings.seq_length


class PairEncoder:
    """Encodes pairs of texts as the ids that a classifier reads."""

    def __init__(self, tokenizer: Tokenizer, seq_length: int):
        self.tokenizer, self.seq_length = tokenizer, seq_length
        self.cls, self.sep, self.pad = word_pieces(tokenizer).require("cls", "sep", "pad")

    def parts(self, example: Example) -> tuple[list[list[int]], list[int]]:
        """(ids of each text of `first`, ids of `second`)."""
        limit = MAX_QUESTION_TOKENS if example.options else None
        firsts = [self.tokenizer.encode(text)[:limit] for text in example.first]
        return firsts, self.tokenizer.encode(example.second)

    def sequence(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], int]:
        """(ids with special tokens, the index at which token type 1 begins)."""
        ids = [self.cls, *first, self.sep, *second][: self.seq_length - 1] + [self.sep]
        return ids, min(len(first) + 2, len(ids) - 1)

    def batch(
        self, examples: Sequence[tuple[Sequence[Sequence[int]], Sequence[int]]], device: torch.device
    ) -> dict:
        """The arguments of Classifier.forward for the `parts` of examples, padded to the longest sequence."""
        rows = [self.sequence(first, second) for firsts, second in examples for first in firsts]
        shape = (len(rows), max(len(ids) for ids, _ in rows))
        tokens = np.full(shape, self.pad, np.int64)
        types = np.zeros(shape, np.int64)
        mask = np.zeros(shape, bool)
        for row, (ids, border) in enumerate(rows):
            tokens[row, : len(ids)] = ids
            types[row, border : len(ids)] = 1
            mask[row, : len(ids)] = True
        return {
            "tokens": torch.from_numpy(tokens).to(device),
            "token_types": torch.from_numpy(types).to(device),
            "padding_mask": torch.from_numpy(mask).to(device),
            "choices": len(examples[0][0]),
        }


class TrainingSet:
    """The ids and labels of all examples, 4 bytes a token; consecutive examples share the same `second`."""

    def __init__(self, encoder: PairEncoder, examples: Iterable[Example]):
        self._ids, self._ends = array.array("i"), array.array("q", [0])
        self._firsts, self._seconds, self.labels = array.array("q"), array.array("q"), array.array("b")
        self.choices = 0
        previous: list[int] | None = None
        for example in examples:
            if example.label is None:
                raise UserError(f"{example.file}: has no labels to learn from; give a training set")
            firsts, second = encoder.parts(example)
            if second != previous:
                self._second, previous = self._append(second), second
            self.choices = len(firsts)
            self._firsts.append(len(self._ends) - 1)
            for first in firsts:
                self._append(first)
            self._seconds.append(self._second)
            self.labels.append(example.label)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[list[array.array[int]], array.array[int]]:
        """The `parts` of an example."""
        first = self._firsts[number]
        return [self._part(first + n) for n in range(self.choices)], self._part(self._seconds[number])

    def _append(self, ids: list[int]) -> int:
        """Stores ids; returns their number for `_part`."""
        self._ids.extend(ids)
        self._ends.append(len(self._ids))
        return len(self._ends) - 2

    def _part(self, number: int) -> array.array[int]:
        return self._ids[self._ends[number] : self._ends[number + 1]]


@torch.inference_mode()
def log_probabilities(
    model: Classifier, encoder: PairEncoder, examples: Sequence[Example], batch_size: int
) -> list[list[float]]:
    """For each example the log-probability in nats of every choice or class.

    A batch has examples of similar length.
    """
    parts = [encoder.parts(example) for example in examples]
    device = next(model.parameters()).device
    by_length = sorted(range(len(parts)), key=lambda i: -max(map(len, parts[i][0])) - len(parts[i][1]))
    results: list = [None] * len(parts)
    for start in range(0, len(parts), batch_size):
        numbers = by_length[start : start + batch_size]
        logits = model(**encoder.batch([parts[i] for i in numbers], device))
        for number, row in zip(numbers, logits.log_softmax(-1).tolist()):
            results[number] = row
    return results
