"""A model cut into pipeline stages: which blocks a stage has, and what of the model is left there.

A stage is the whole model, built without memory (on the meta device), of which the blocks of other stages
became pass-throughs, what stands before the first block or after the last is gone where it is not needed, and
the embedding gives what came from the stage before. So the model's own forward pass is that of every stage,
and all names are those of one process. What goes from stage to stage:

    GPT, BERT           (B, T, D), after a block
    T5, in the encoder  (B, S, D), after a block of the encoder, or its last
    T5, in the decoder  (B, T, D), after a block, and the encoder's states (B, S, D)
    Retro               (B, T, D), and from its encoder to the last layer that reads it the neighbours' states
        (n, k r, D)

A weight that several stages read (an embedding that is the head too, T5's positions and its biases by
distance) belongs to the first of them; the others have copies (pipeline.py keeps them equal).
"""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn

from ...core.config import check
from ..model.attention import see_tokens
from ..model.block import Block
from ..model.chunked_cross_attention import Retrieved
from ..model.config import ModelConfig, retro_layers
from ..model.flops import block_flops, head_flops
from ..model.gpt import GPT
from ..model.inputs import MicroBatch
from ..model.retro import Retro
from ..model.t5 import T5, Memory
from .mesh import ParallelConfig

FAMILIES = ("gpt", "bert", "t5")
OF_LOSS = ("labels", "loss_mask", "swapped")  # of a micro-batch: what the last stage alone reads


def check_stages(parallel: ParallelConfig, model: ModelConfig, lengths: dict[str, int]) -> None:
    """Raises UserError where a model cannot be cut into these stages. model: resolved.

    lengths: see sharding.check_layout.
    """
    ranks, size = parallel.pipeline_model_parallel_size, parallel.num_layers_per_virtual_pipeline_stage
    if ranks == 1:
        return
    check(
        (
            model.family in FAMILIES,
            (
                f"parallel.pipeline_model_parallel_size = {ranks}: model.family = {model.family} is not cut"
                " into stages; use --tensor-model-parallel-size, or more data-parallel processes"
            ),
        )
    )
    blocks = len(_costs(model, lengths))
    check(
        (
            ranks <= blocks,
            (
                f"parallel.pipeline_model_parallel_size = {ranks} is more than the model's {blocks} blocks;"
                " use at most so many"
            ),
        ),
        (
            size is None or blocks % (ranks * size) == 0,
            (
                f"parallel.num_layers_per_virtual_pipeline_stage = {size} x"
                f" parallel.pipeline_model_parallel_size = {ranks} does not divide the model's {blocks}"
                " blocks; "
                "use one of"
                f" {', '.join(str(n) for n in range(1, blocks // ranks + 1) if blocks % (ranks * n) == 0) or 'none: leave it out, or change the stages'}"
            ),
        ),
    )


def bounds(parallel: ParallelConfig, model: ModelConfig, lengths: dict[str, int]) -> list[tuple[int, int]]:
    """(first block, block after the last) of every stage: as even as blocks can be dealt out, the head
    counted with the last one.
    """
    costs, ranks, size = (
        _costs(model, lengths),
        parallel.pipeline_model_parallel_size,
        parallel.num_layers_per_virtual_pipeline_stage,
    )
    ends = divide(costs, ranks) if size is None else list(range(size, len(costs) + 1, size))
    return list(zip([0, *ends], ends))


def _costs(model: ModelConfig, lengths: dict[str, int]) -> list[float]:
    """FLOPs of each block, the head's with the last one's."""
    how = (lengths["seq_length"], lengths.get("decoder_seq_length", 0))
    costs = [cost.full for cost in block_flops(model, *how)]
    costs[-1] += head_flops(model, *how)
    return costs


def divide(costs: list[float], stages: int) -> list[int]:
    """Where each stage ends: consecutive blocks, the dearest stage as cheap as can be.

    len(costs) >= stages.
    """
    return list(_divide(tuple(costs), stages))


@functools.lru_cache(4096)
def _divide(costs: tuple[float, ...], stages: int) -> tuple[int, ...]:
    low, high = max(costs), sum(costs)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_fill(costs, middle)) <= stages else (middle, high)
    ends = _fill(costs, high)
    while len(ends) < stages:  # a stage of several blocks gives one away: the limit still holds
        begins = [0, *ends]
        longest = max(range(len(ends)), key=lambda i: ends[i] - begins[i])
        ends.insert(longest, ends[longest] - 1)
    return tuple(ends)


def _fill(costs: tuple[float, ...], limit: float) -> list[int]:
    ends, total = [], 0.0
    for i, cost in enumerate(costs):
        if total + cost > limit * (1 + 1e-12) and i > 0:
            ends.append(i)
            total = 0.0
        total += cost
    return [*ends, len(costs)]


def cut_stage(whole: nn.Module, begin: int, end: int) -> nn.Module:
    """The stage of the blocks `begin` to `end` of a model on the meta device, which stays as it is."""
    model = copy.deepcopy(whole)
    total, first = len(model.layers), 0
    for row in [m for m in model.children() if isinstance(m, nn.ModuleList)]:
        for i in range(len(row)):
            if not begin <= first + i < end:
                row[i] = PassThrough()
        first += len(row)
    kept = _kept(model.config, begin, end, total)
    for name, child in list(model.named_children()):
        if name not in kept and not isinstance(child, nn.ModuleList):
            setattr(model, name, nn.Identity() if name.endswith("norm") else None)
    kind = _T5Stage if isinstance(model, T5) else _RetroStage if isinstance(model, Retro) else _Stage
    model.__class__ = type(f"Stage{type(model).__name__}", (kind, type(model)), {})
    model.begin, model.end, model.received = begin, end, []
    model.is_first, model.is_last = begin == 0, end == total
    return model


def _kept(config: ModelConfig, begin: int, end: int, total: int) -> set[str]:
    """What a stage has beside its blocks, by the model's names."""
    first, last, kept = begin == 0, end == total, set()
    if last:
        kept |= {"norm", "decoder_norm", "output", "head", "pooler", "binary_head"} | (
            set() if config.untie_embeddings_and_output_weights else {"embedding"}
        )
    if first:
        kept |= {"embedding", "positions", "token_types"}
    if config.post_norm:  # BERT's norm is then the embedding's
        kept = kept | {"norm"} if first else kept - {"norm"}
    if config.retro_add_retriever and begin <= retro_layers(total)[0] < end:  # neighbours are embedded, too
        kept |= {"embedding", "positions"}
    if config.family == "t5":
        encoder = config.num_layers
        if begin < encoder:
            kept |= {"encoder_bias"}
        if begin <= encoder < end:  # where the encoder ends and the decoder begins
            kept |= {"encoder_norm", "embedding", "positions"}
        if end > encoder:
            kept |= {"decoder_bias"}
    return kept


def owners(config: ModelConfig, stages: list[tuple[int, int]]) -> dict[str, list[int]]:
    """Part of a model -> the stages that have it, the owner first, where these are several."""
    having: dict[str, list[int]] = {}
    for index, (begin, end) in enumerate(stages):
        for name in _kept(config, begin, end, stages[-1][1]):
            having.setdefault(name, []).append(index)
    return {name: indices for name, indices in sorted(having.items()) if len(indices) > 1}


class PassThrough(nn.Module):
    """In the place of another stage's block."""

    def forward(self, x: Tensor, **_) -> Tensor:
        return x


class _Stage(nn.Module):
    """A model whose first states come from the stage before, where there is one: `received`, filled before
    every forward pass.
    """

    def embed(self, *arguments) -> Tensor:
        return self.received.pop(0) if self.received else super().embed(*arguments)

    def run(self, micro: MicroBatch, received: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the next stage gets; of the last one, (the summed loss,)."""
        self.received = list(received)
        arguments = micro.arguments()
        result = (
            self.loss(**arguments)
            if self.is_last
            else self(**{name: value for name, value in arguments.items() if name not in OF_LOSS})
        )
        return result if isinstance(result, tuple) else (result,)


class _T5Stage(_Stage):
    def forward(
        self, tokens: Tensor, encoder_tokens: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        encoder = len(self.encoder)
        if self.begin <= encoder:
            memory = self.encode(encoder_tokens, padding_mask)
            if self.end <= encoder:
                return memory.states
        else:
            memory = Memory(self.received.pop(), see_tokens(padding_mask))
        x = self.decode(tokens, memory)
        # A copy: what comes out of a gather is a view, which fully_shard warns of.
        return x if self.is_last else (x, memory.states.clone())


class _RetroStage(_Stage):
    def forward(
        self, tokens: Tensor, *, neighbors: Tensor, neighbor_mask: Tensor, **how
    ) -> Tensor | tuple[Tensor, Tensor]:
        encoding = retro_layers(len(self.layers))[0]
        retrieved = None
        if self.begin <= encoding < self.end:
            retrieved = Retrieved(
                *self._embed(neighbors.flatten(0, 1), neighbor_mask.flatten(0, 1)),
                gate=1.0,
                chunks=neighbors.shape[1],
                first=self.first_chunk(tokens, neighbors),
            )
        elif _reads_on(self.config, self.begin):
            retrieved = Retrieved(
                None,
                neighbor_mask.flatten(0, 1),
                None,
                gate=1.0,
                chunks=neighbors.shape[1],
                first=self.first_chunk(tokens, neighbors),
            )
            retrieved.encoded = self.received.pop()
        x = GPT.forward(self, tokens, retrieved=retrieved, **how)
        return (x, retrieved.encoded.clone()) if not self.is_last and _reads_on(self.config, self.end) else x


def _reads_on(config: ModelConfig, begin: int) -> bool:
    """Whether a layer of Retro from `begin` on reads what one before it has encoded."""
    reading = retro_layers(config.num_layers) if config.retro_add_retriever else range(0)
    return bool(reading) and reading[0] < begin <= reading[-1]


def shapes(config: ModelConfig, begin: int, micro: MicroBatch, cut: int) -> list[torch.Size]:
    """Of what comes to the stage whose first block is `begin`.

    cut: tensor-parallel ranks over which sequences are cut between blocks.
    """
    B, T = micro.tokens.shape
    if config.family == "t5":
        S = micro.encoder_tokens.shape[1]
        if begin <= config.num_layers:
            return [torch.Size((B, S // cut, config.hidden_size))]
        return [torch.Size((B, T // cut, config.hidden_size)), torch.Size((B, S, config.hidden_size))]
    states = [torch.Size((B, T // cut, config.hidden_size))]
    if _reads_on(config, begin):
        chunks, k, r = micro.neighbors.shape[1:]
        states.append(torch.Size((B * chunks, k * r, config.hidden_size)))
    return states


def stages_of(model: nn.Module) -> list[nn.Module]:
    """The stages of a pipeline on this rank; any other model itself."""
    return list(getattr(model, "stages", [model]))


def own_blocks(model: nn.Module) -> list[Block]:
    """The blocks of a model that are not other stages'."""
    return [block for block in model.layers if isinstance(block, Block)]
