"""Common settings of the tasks that score a language model without finetuning."""

from __future__ import annotations

import dataclasses

from ...core.config import check, configuration, option
from ...train.checkpoint.presence import check_presence
from ..lm import Retrieval


@configuration()
class TaskConfig:
    """The model, the batch and the output of one task."""

    load: str = option(help="checkpoint directory", role="input")
    output: str | None = option(
        None, "directory for a line per example and the scores; none: only print the scores", role="output"
    )
    seq_length: int | None = option(
        None, "tokens in a sequence at most; none: as many as the model was trained with"
    )
    micro_batch_size: int = option(16, "sequences scored together")
    tensor_model_parallel_size: int = option(
        1,
        "processes that share one copy of the model, for models too large for one; the others share the work",
        role="runtime",
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")
    retrieval: Retrieval = dataclasses.field(default_factory=Retrieval)

    def __post_init__(self):
        check(
            (self.micro_batch_size >= 1, f"micro_batch_size = {self.micro_batch_size} must be at least 1"),
            (
                self.tensor_model_parallel_size >= 1,
                f"tensor_model_parallel_size = {self.tensor_model_parallel_size} must be at least 1",
            ),
            (
                self.seq_length is None or self.seq_length >= 1,
                f"seq_length = {self.seq_length} must be at least 1",
            ),
        )

    def check_inputs(self) -> None:
        """Raises UserError for inputs that are not there, before anything is read."""
        check_presence(self.load)
