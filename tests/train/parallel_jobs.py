"""Jobs that tests of parallel training run on ranks: training steps at a layout, memory, random numbers."""

import dataclasses
import gc
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mt.train import loop
from mt.train.checkpoint.base import named_tensors
from mt.train.checkpoint.open import open_checkpoint
from mt.train.config import TrainConfig
from mt.train.determinism import seed_dropout_per_block
from mt.train.metrics import peak_memory
from mt.train.model import layers
from mt.train.model.attention import Documents
from mt.train.model.block import FeedForward
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.dtensor import local_shard
from mt.train.model.family import build_model
from mt.train.model.inputs import MicroBatch
from mt.train.model.layers import initialize
from mt.train.optimizer import OptimizerConfig, build_optimizer, clip_gradients, gradient_norm
from mt.train.parallel import parallelize as parallelize_module
from mt.train.parallel.context_parallel import split_sequences
from mt.train.parallel.mesh import Mesh, ParallelConfig, launch
from mt.train.parallel.parallelize import (
    _random_numbers_of_rank,
    check_layout,
    dropout_place,
    parallelize,
    synchronise_gradients,
)
from mt.train.parallel.pipeline import Pipeline
from mt.train.parallel.stages import stages_of
from mt.train.precision import MasterWeights
from mt.train.recompute import RecomputeConfig, recompute
from mt.train.step import forward_backward

VOCABULARY, LENGTH, MICRO_BATCHES, ROWS = 60, 16, 4, 2

FAMILIES = {
    "gpt": {"num_layers": 2},
    "gpt_neox": {
        "family": "gpt_neox",
        "num_layers": 2,
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "untie_embeddings_and_output_weights": True,
    },
    "falcon": {
        "family": "falcon",
        "num_layers": 2,
        "num_query_groups": 2,
        "position_embedding_type": "rope",
        "parallel_norms": 1,
        "add_bias_linear": False,
    },
    "bloom": {
        "num_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 6,
        "position_embedding_type": "alibi",
        "embed_layernorm": True,
        "activation": "gelu_tanh",
    },
    "llama": {
        "num_layers": 2,
        "num_query_groups": 2,
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "add_bias_linear": False,
        "untie_embeddings_and_output_weights": True,
        "qk_layernorm": True,
        "window_size": 9,
    },
    "gemma": {
        "num_layers": 2,
        "num_query_groups": 2,
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "activation": "geglu",
        "add_bias_linear": False,
        "add_attention_bias": True,
        "apply_layernorm_1p": True,
        "sublayer_norms": "both",
        "qk_layernorm": True,
        "window_size": 5,
        "window_attn_skip_freq": "[1,0]",
        "rotary_local_base": 100.0,
        "softmax_scale": 0.4,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "embedding_multiplier": 4.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 0.5,
    },
    "olmo2": {
        "num_layers": 2,
        "num_query_groups": 2,
        "position_embedding_type": "rope",
        "rotary_percent": 0.5,
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "add_bias_linear": False,
        "sublayer_norms": "output",
        "qk_layernorm": True,
        "qk_layernorm_scope": "all_heads",
    },
    "mla": {
        "num_layers": 2,
        "multi_latent_attention": True,
        "q_lora_rank": 10,
        "kv_lora_rank": 6,
        "qk_head_dim": 5,
        "qk_pos_emb_head_dim": 4,
        "v_head_dim": 3,
        "qk_layernorm": True,
        "add_attention_bias": True,
        "position_embedding_type": "rope",
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "mscale_all_dim": 0.7,
        },
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "add_bias_linear": False,
        "num_experts": 4,
        "moe_layer_freq": "[0,1]",
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_num_groups": 2,
        "moe_router_group_topk": 2,
        "moe_router_topk_scaling_factor": 2.5,
        "moe_shared_expert_intermediate_size": 16,
    },
    "moe": {
        "num_layers": 2,
        "num_experts": 4,
        "moe_layer_freq": "[0,1]",
        "moe_aux_loss_coeff": 0.01,
        "moe_z_loss_coeff": 0.001,
        "moe_shared_expert_intermediate_size": 16,
        "moe_shared_expert_gate": True,
        "activation": "swiglu",
        "add_bias_linear": False,
    },
    "mtp": {"num_layers": 2, "mtp_num_layers": 2, "mtp_loss_scaling_factor": 0.3},
    "bert": {"family": "bert", "num_layers": 2},
    "bert_post_norm": {"family": "bert", "num_layers": 2, "post_norm": True},
    "t5": {"family": "t5", "num_layers": 1},
    "t5_relative": {
        "family": "t5",
        "num_layers": 1,
        "position_embedding_type": "relative",
        "normalization": "RMSNorm",
        "activation": "geglu",
        "add_bias_linear": False,
    },
    "ict": {"family": "ict", "num_layers": 1, "biencoder_projection_dim": 6, "hidden_dropout": 0.1},
    "ict_shared": {
        "family": "ict",
        "num_layers": 2,
        "biencoder_shared_query_context_model": True,
        "retriever_score_scaling": True,
        "post_norm": True,
    },
    "mamba": {
        "hybrid_override_pattern": "M*-",
        **(
            MAMBA := {
                "mamba_head_dim": 8,
                "mamba_num_groups": 2,
                "mamba_state_dim": 8,
                "position_embedding_type": "none",
            }
        ),
    },
    "retro": {
        "num_layers": 6,
        **(
            RETRO := {
                "retro_add_retriever": True,
                "retro_chunk_length": 4,
                "retro_encoder_hidden_dropout": 0.0,
                "retro_encoder_attention_dropout": 0.0,
            }
        ),
    },
    "retro_llama": {
        "num_layers": 9,
        "num_query_groups": 2,
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "add_bias_linear": False,
        **RETRO,
    },
    "retro_moe": {"num_layers": 6, "num_experts": 4, **RETRO},
    "mamba_moe": {"hybrid_override_pattern": "ME", "num_experts": 4, **MAMBA},
}
FAMILIES |= {
    "mtp_llama": {**FAMILIES["llama"], "mtp_num_layers": 1},
    "mtp_mla": {**FAMILIES["mla"], "mtp_num_layers": 1, "mtp_loss_scaling_factor": 0.3},
}

TP, SP, CP, EP = (
    {"tensor_model_parallel_size": 2},
    {"sequence_parallel": True},
    {"context_parallel_size": 2},
    {"expert_model_parallel_size": 2},
)
PP, PP4, ZERO = (
    {"pipeline_model_parallel_size": 2},
    {"pipeline_model_parallel_size": 4},
    {"pipeline_schedule": "zero-bubble"},
)
VIRTUAL, FOUR = {"num_layers_per_virtual_pipeline_stage": 1}, {"changes": (("num_layers", 4),)}
FULL = {"data_parallel_sharding": "full"}
FEW = {"steps": 3}
DROP = {"changes": (("moe_expert_capacity_factor", 0.7),)}
DROP_LAST = {"changes": (("moe_expert_capacity_factor", 0.7), ("moe_token_drop_policy", "position"))}
# name -> (family, number of processes, layout, other settings): each axis alone, pairs of axes, and every
# family where it divides matrices
CASES = {
    "gpt, DP2": ("gpt", 2, {}),
    "gpt, DP2, weights sharded": ("gpt", 2, FULL),
    "gpt, TP2": ("gpt", 2, TP),
    "gpt, TP2, sequence parallel": ("gpt", 2, TP | SP),
    "gpt, TP4": ("gpt", 4, {"tensor_model_parallel_size": 4}),
    "gpt, CP2": ("gpt", 2, CP),
    "gpt, CP2, packed documents": ("gpt", 2, CP, {"packed": True}),
    "gpt, TP2 x DP2, weights sharded": ("gpt", 4, TP | FULL),
    "gpt, TP2 x DP2, sequence parallel": ("gpt", 4, TP | SP),
    "gpt, CP2 x DP2": ("gpt", 4, CP),
    "gpt, TP2 x CP2, sequence parallel": ("gpt", 4, TP | SP | CP),
    "gpt, TP2 x CP2": ("gpt", 4, TP | CP),
    "gpt, TP2 x CP2, sequence parallel, weights sharded": ("gpt", 4, TP | SP | CP | FULL),
    "gpt, CP2, weights sharded": ("gpt", 2, CP | FULL),
    "gpt, CP2, weights sharded, all recomputed": ("gpt", 2, CP | FULL, {"granularity": "full"}),
    "gpt, TP2, sequence parallel, packed documents": ("gpt", 2, TP | SP, {"packed": True}),
    "gpt, DP2, weights sharded, packed documents": ("gpt", 2, FULL, {"packed": True}),
    "llama, TP2": ("llama", 2, TP),
    "llama, TP2, sequence parallel": ("llama", 2, TP | SP),
    "llama, CP2": ("llama", 2, CP),
    "moe, DP2": ("moe", 2, {}),
    "moe, EP2": ("moe", 2, EP),
    "moe, TP2": ("moe", 2, TP),
    "moe, TP2, sequence parallel": ("moe", 2, TP | SP),
    "moe, CP2 x EP2": ("moe", 2, CP | EP),
    "moe, CP2 x EP2, weights sharded": ("moe", 2, CP | EP | FULL),
    "moe, TP2 x EP2": ("moe", 4, TP | EP),
    "moe, TP2 x CP2 x EP2, sequence parallel": ("moe", 4, TP | SP | CP | EP),
    "moe, EP2 x DP4, weights sharded": ("moe", 4, EP | FULL),
    "moe, TP2 x EP2, sequence parallel": ("moe", 4, TP | SP | EP),
    "bert, TP2": ("bert", 2, TP),
    "bert, TP2, sequence parallel": ("bert", 2, TP | SP),
    "bert with norms after, TP2, sequence parallel": ("bert_post_norm", 2, TP | SP),
    "t5, TP2": ("t5", 2, TP),
    "t5, TP2, sequence parallel": ("t5", 2, TP | SP),
    "t5 with relative positions, TP2, sequence parallel": ("t5_relative", 2, TP | SP),
    "bert, DP2": ("bert", 2, {}),
    "bert, DP2, weights sharded": ("bert", 2, FULL),
    "t5, DP2": ("t5", 2, {}),
    "t5, DP2, weights sharded": ("t5", 2, FULL),
    "ict, DP2": ("ict", 2, {}),
    "ict, DP4, weights sharded": ("ict", 4, FULL),
    "ict, TP2": ("ict", 2, TP),
    "ict with one tower, TP2 x DP2, sequence parallel": ("ict_shared", 4, TP | SP),
    "mamba hybrid with experts, EP2, weights sharded": ("mamba_moe", 2, EP | FULL),
    "Retro, DP2": ("retro", 2, {}, FEW),
    "Retro, DP2, weights sharded": ("retro", 2, FULL, FEW),
    "Retro, TP2": ("retro", 2, TP, FEW),
    "Retro, TP2, sequence parallel": ("retro", 2, TP | SP, FEW),
    "Retro with experts, EP2": ("retro_moe", 2, EP, FEW),
    "Retro with experts, TP2 x EP2, sequence parallel": ("retro_moe", 4, TP | SP | EP, FEW),
    "Retro, rotated, TP2, sequence parallel": ("retro_llama", 2, TP | SP, FEW),
    "Retro, PP2": ("retro", 2, PP, FEW),
    "Retro, PP2 x TP2, sequence parallel": ("retro", 4, PP | TP | SP, FEW),
    "Retro, rotated, PP3, zero-bubble": ("retro_llama", 3, {"pipeline_model_parallel_size": 3} | ZERO, FEW),
    "Retro, TP2 x DP2, sequence parallel, weights sharded": ("retro", 4, TP | SP | FULL, FEW),
    "moe that drops tokens, DP2": ("moe", 2, {}, DROP),
    "moe that drops tokens, CP2": ("moe", 2, CP, DROP),
    "moe that drops the last tokens, CP2 x EP2": ("moe", 2, CP | EP, DROP_LAST),
    "mamba hybrid, DP2": ("mamba", 2, {}),
    "mamba hybrid, DP2, weights sharded": ("mamba", 2, FULL),
    "mamba hybrid, TP2": ("mamba", 2, TP),
    "mamba hybrid, CP2": ("mamba", 2, CP),
    "mamba hybrid, CP2, packed documents": ("mamba", 2, CP, {"packed": True}),
    "mamba hybrid, TP2 x CP2, sequence parallel": (
        "mamba",
        4,
        TP | SP | CP,
        {"changes": (("mamba_num_groups", 4),)},
    ),
    "mamba hybrid, TP2, sequence parallel": ("mamba", 2, TP | SP),
    "falcon, DP2": ("falcon", 2, {}),
    "falcon, TP2": ("falcon", 2, TP),
    "falcon, TP2, sequence parallel": ("falcon", 2, TP | SP),
    "falcon, CP2": ("falcon", 2, CP),
    "falcon, PP2": ("falcon", 2, PP),
    "falcon, PP2 x TP2, sequence parallel": ("falcon", 4, PP | TP | SP),
    "bloom, DP2, weights sharded": ("bloom", 2, FULL),
    "bloom, TP2": ("bloom", 2, TP),
    "bloom, TP2, sequence parallel": ("bloom", 2, TP | SP),
    "bloom, CP2, packed documents": ("bloom", 2, CP, {"packed": True}),
    "bloom, PP2": ("bloom", 2, PP),
    "bloom, PP2 x TP2, sequence parallel": ("bloom", 4, PP | TP | SP),
    "bloom, TP2 x CP2, sequence parallel, packed documents": (
        "bloom",
        4,
        TP | SP | CP,
        {"packed": True},
    ),
    "gemma, DP2, weights sharded": ("gemma", 2, FULL),
    "gemma, TP2": ("gemma", 2, TP),
    "gemma, TP2, sequence parallel": ("gemma", 2, TP | SP),
    "gemma, CP2, packed documents": ("gemma", 2, CP, {"packed": True}),
    "gemma, PP2": ("gemma", 2, PP),
    "gemma, PP2 x TP2, sequence parallel": ("gemma", 4, PP | TP | SP),
    "olmo2, TP2": ("olmo2", 2, TP),
    "olmo2, TP2, sequence parallel": ("olmo2", 2, TP | SP),
    "olmo2, CP2": ("olmo2", 2, CP),
    "olmo2, TP2 x DP2, weights sharded": ("olmo2", 4, TP | FULL),
    "mla, DP2, weights sharded": ("mla", 2, FULL),
    "mla, TP2": ("mla", 2, TP),
    "mla, TP2, sequence parallel": ("mla", 2, TP | SP),
    "mla, CP2, packed documents": ("mla", 2, CP, {"packed": True}),
    "mla, PP2": ("mla", 2, PP),
    "mla, TP2 x EP2, sequence parallel, weights sharded": ("mla", 4, TP | SP | EP | FULL),
    "mla, TP2 x CP2, sequence parallel": ("mla", 4, TP | SP | CP),
    "mtp, DP2": ("mtp", 2, {}),
    "mtp, DP2, weights sharded": ("mtp", 2, FULL),
    "mtp, TP2": ("mtp", 2, TP),
    "mtp, TP2, sequence parallel": ("mtp", 2, TP | SP),
    "mtp, CP2, packed documents": ("mtp", 2, CP, {"packed": True}),
    "mtp, PP2": ("mtp", 2, PP),
    "mtp, PP2, zero-bubble": ("mtp", 2, PP | ZERO),
    "mtp, PP2 x TP2, sequence parallel": ("mtp", 4, PP | TP | SP),
    "mtp, PP2 x DP2, weights sharded": ("mtp", 4, PP | FULL),
    "mtp of latents and experts, EP2": ("mtp_mla", 2, EP),
    "mtp of latents and experts, TP2 x EP2, sequence parallel": ("mtp_mla", 4, TP | SP | EP),
    "mtp of latents and experts, PP2": ("mtp_mla", 2, PP),
    "mtp, its own output layer, PP2, interleaved": ("mtp_llama", 2, PP | VIRTUAL, FOUR),
    "mtp, its own output layer, PP2 x CP2": ("mtp_llama", 4, PP | CP),
    "gpt_neox, TP2, sequence parallel": ("gpt_neox", 2, TP | SP),
    "gpt_neox, CP2": ("gpt_neox", 2, CP),
    "gpt_neox, PP2": ("gpt_neox", 2, PP),
    "gpt_neox, PP2 x TP2, sequence parallel": ("gpt_neox", 4, PP | TP | SP),
    "gpt, PP2": ("gpt", 2, PP),
    "gpt, PP2, interleaved": ("gpt", 2, PP | VIRTUAL, FOUR),
    "gpt, PP2, stages of 3 and 1 blocks": ("gpt", 2, PP | {"pipeline_model_parallel_layout": "ttt|t"}, FOUR),
    "gpt, PP2, zero-bubble": ("gpt", 2, PP | ZERO),
    "gpt, PP4": ("gpt", 4, PP4, FOUR),
    "gpt, PP2 x TP2, sequence parallel": ("gpt", 4, PP | TP | SP),
    "gpt, PP2 x TP2, interleaved zero-bubble": ("gpt", 4, PP | TP | VIRTUAL | ZERO, FOUR),
    "gpt, PP2 x CP2, packed documents": ("gpt", 4, PP | CP, {"packed": True}),
    "gpt, PP2 x DP2": ("gpt", 4, PP),
    "gpt, PP2 x DP2, weights sharded": ("gpt", 4, PP | FULL),
    "llama, PP2": ("llama", 2, PP),
    "moe, PP2": ("moe", 2, PP),
    "moe, PP2 x EP2": ("moe", 4, PP | EP),
    "moe, PP2 x TP2, sequence parallel": ("moe", 4, PP | TP | SP),
    "bert, PP2": ("bert", 2, PP),
    "bert, PP2 x TP2, sequence parallel": ("bert", 4, PP | TP | SP),
    "bert with norms after, PP2": ("bert_post_norm", 2, PP),
    "t5, PP2": ("t5", 2, PP),
    "t5, PP2 x TP2, sequence parallel": ("t5", 4, PP | TP | SP),
    "t5 with relative positions, PP4, interleaved": ("t5_relative", 4, PP4 | VIRTUAL, FOUR),
    "mamba hybrid, PP2": ("mamba", 2, PP),
    "mamba hybrid, PP2 x TP2, sequence parallel": ("mamba", 4, PP | TP | SP),
    "mamba hybrid, PP2 x CP2": ("mamba", 4, PP | CP),
    "moe, PP2 x CP2": ("moe", 4, PP | CP),
}


@dataclasses.dataclass
class Result:
    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]  # whole tensors


def model_config(family: str, **changes) -> ModelConfig:
    settings = {
        "hidden_size": 16,
        "num_attention_heads": 4,
        "ffn_hidden_size": 32,
        "make_vocab_size_divisible_by": 8,
        **FAMILIES[family],
        **changes,
    }
    return resolve(ModelConfig(**settings), vocab_size=VOCABULARY, seq_length=LENGTH)


def micro_batch(config: ModelConfig, index: int, *, packed: bool = False) -> MicroBatch:
    """A random micro-batch with a random loss mask, the same on every rank."""
    generator = torch.Generator().manual_seed(index)
    tokens, labels, encoder = torch.randint(VOCABULARY, (3, ROWS, LENGTH), generator=generator)
    weights = torch.randint(2, (ROWS, LENGTH), generator=generator).float()
    present = torch.arange(LENGTH) < torch.tensor([[LENGTH], [LENGTH - 3]])
    if config.family == "bert":
        types = (torch.arange(LENGTH) > 6).long().expand(ROWS, -1)
        return MicroBatch(
            index,
            tokens,
            labels,
            weights,
            token_types=types,
            padding_mask=present,
            swapped=torch.tensor([0, 1]),
        )
    if config.family == "ict":
        return MicroBatch(
            index,
            tokens,
            None,
            torch.ones(ROWS),
            padding_mask=present,
            encoder_tokens=encoder,
            encoder_padding_mask=present.flip(0),
        )
    if config.family == "t5":
        return MicroBatch(index, tokens, labels, weights, padding_mask=present, encoder_tokens=encoder)
    if config.retro_add_retriever:
        return MicroBatch(index, tokens, labels, weights, **random_neighbors(config, ROWS, LENGTH, generator))
    if not packed:
        return MicroBatch(index, tokens, labels, weights)
    ids = (torch.arange(LENGTH) >= torch.tensor([[5], [11]])).int()
    positions = torch.arange(LENGTH) - ids * torch.tensor([[5], [11]])
    return MicroBatch(
        index,
        tokens,
        labels,
        weights,
        positions,
        Documents(ids, torch.tensor([0, 5, 16, 27, 32], dtype=torch.int32), 11),
    )


def random_neighbors(
    config: ModelConfig, rows: int, length: int, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The neighbour arguments of Retro's `loss` for `rows` samples; some are short, and some are missing."""
    m, k = config.retro_chunk_length, config.retro_num_neighbors
    neighbors = torch.randint(config.vocab_size, (rows, -(-length // m), k, 2 * m), generator=generator)
    lengths = torch.randint(5, (*neighbors.shape[:-1], 1), generator=generator) * m // 2
    return {"neighbors": neighbors, "neighbor_mask": torch.arange(2 * m) < lengths}


def train(
    family: str,
    parallel: dict | None = None,
    *,
    changes: dict | tuple | None = None,
    steps: int = 10,
    dtype: torch.dtype = torch.float64,
    packed: bool = False,
    granularity: str | None = None,
    compute_dtype: torch.dtype | None = None,
    optimizer: OptimizerConfig | None = None,
) -> Result:
    """Steps of an optimizer (AdamW) on the same global batches at any layout, with gradients clipped."""
    parallel = ParallelConfig(**(parallel or {}), distributed_timeout_minutes=1)
    with launch(parallel) as mesh:
        return _train(
            mesh,
            parallel,
            model_config(family, **dict(changes or ())),
            steps,
            dtype,
            packed,
            granularity,
            compute_dtype or dtype,
            optimizer or OptimizerConfig(lr=1e-3),
        )


def _train(
    mesh: Mesh,
    parallel: ParallelConfig,
    config: ModelConfig,
    steps: int,
    dtype,
    packed: bool,
    granularity,
    compute_dtype,
    settings: OptimizerConfig,
) -> Result:
    check_layout(parallel, config, lengths_of(config))
    model = build(mesh, parallel, config, dtype, compute_dtype, granularity)
    weights = MasterWeights(model, torch.float32)
    optimizer = build_optimizer(weights.by_name, settings, config)
    losses, norms = [], []
    for step in range(steps):
        mine = range(mesh.dp.rank, MICRO_BATCHES, mesh.dp.size)
        batch = [
            split_sequences(micro_batch(config, step * MICRO_BATCHES + index, packed=packed), mesh.cp)
            for index in mine
        ]
        tokens = mesh.all_reduce_dp_cp(sum(m.loss_mask.sum(dtype=torch.float64) for m in batch))
        loss = forward_backward(
            model,
            batch,
            1 / tokens,
            seed=f"0:{step}",
            place=dropout_place(mesh, parallel),
            experts=bool(config.num_experts),
        )
        losses.append(float(mesh.all_reduce_dp_cp(loss) / tokens))
        norms.append(float(gradient_norm(model.parameters(), mesh)))
        clip_gradients(model.parameters(), norms[-1], 1.0)
        optimizer.step()
        weights.refresh()
        optimizer.zero_grad()
    return Result(losses, norms, gather_whole(weights.by_name, mesh))


def build(
    mesh: Mesh,
    parallel: ParallelConfig,
    config: ModelConfig,
    dtype: torch.dtype,
    compute_dtype: torch.dtype | None = None,
    granularity: str | None = None,
) -> nn.Module:
    """A model as loop._build makes it."""
    with torch.device("meta"):
        model = build_model(config).to(dtype)
    seed_dropout_per_block(model)
    if mesh.pp.size > 1:
        model = Pipeline(model, mesh, parallel, lengths_of(config), compute_dtype or dtype)
    if granularity:
        recompute(model, RecomputeConfig(recompute_granularity=granularity))
    # On two ranks a bucket has two blocks of a small model, otherwise one. The patch ends after this model,
    # because the process runs later jobs with other numbers of ranks.
    with mock.patch.object(parallelize_module, "BUCKET", 3000 if mesh.world_size == 2 else 0):
        parallelize(model, mesh, parallel, compute_dtype or dtype)
    model.to_empty(device=mesh.device)
    initialize(model, 1234)
    return model


def lengths_of(config: ModelConfig) -> dict[str, int]:
    return {"seq_length": LENGTH, **({"decoder_seq_length": LENGTH} if config.family == "t5" else {})}


def gather_whole(tensors: Mapping[str, Tensor], mesh: Mesh) -> dict[str, Tensor]:
    """Whole tensors of all stages, on rank 0; nothing on the others."""
    own = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in tensors.items()
    }
    of_all_ranks = mesh.all_gather_object(own)
    return (
        {name: tensor for of_rank in of_all_ranks for name, tensor in of_rank.items()}
        if mesh.rank == 0
        else {}
    )


def differences(one: Result, many: Result) -> tuple[float, float, float]:
    """(relative of the losses, relative of the gradient norms, absolute of the weights after the last step).

    Biases of keys are left out. Their gradient is zero in theory, because softmax ignores what all scores
    have in common. Adam divides by its size, so rounding errors become whole steps.
    """
    relative = lambda a, b: max(abs(x - y) / abs(x) for x, y in zip(a, b, strict=True))
    compared = [name for name in one.weights if not name.endswith(("qkv.bias", "key_value.bias"))]
    weights = max((one.weights[name] - many.weights[name]).abs().max().item() for name in compared)
    assert one.weights.keys() == many.weights.keys()
    return relative(one.losses, many.losses), relative(one.norms, many.norms), weights


def first_weights(parallel: dict) -> dict[str, Tensor]:
    """The initial weights, whole. Each rank draws its part in blocks of 40 numbers."""
    parallel = ParallelConfig(**parallel)
    block, layers.BLOCK = layers.BLOCK, 40
    with launch(parallel) as mesh, torch.device("meta"):
        model = build_model(model_config("mamba_moe", hybrid_override_pattern="M*E"))
        parallelize(model, mesh, parallel, torch.float32)
        model.to_empty(device=mesh.device)
        with torch.device("cpu"):
            initialize(model, 1234)
        layers.BLOCK = block
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
            for name, p in model.named_parameters()
        }


def memory_of_building(parallel: dict) -> tuple[int, int]:
    """(bytes by which the peak memory of this process grew while it built a model, bytes of the model)."""
    parallel = ParallelConfig(**parallel)
    with launch(parallel) as mesh:
        with torch.device("meta"):
            model = build_model(model_config("gpt", hidden_size=1024, ffn_hidden_size=8192))
        parallelize(model, mesh, parallel, torch.float32)
        before = peak_memory()
        model.to_empty(device=mesh.device)
        initialize(model, 1234)
        return peak_memory() - before, sum(4 * p.numel() for p in model.parameters())


def bytes_per_parameter(parallel: dict, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes of a rank's tensors / parameters of the model: (between micro-batches, between steps)."""
    parallel = ParallelConfig(**parallel)
    with launch(parallel) as mesh:
        config = model_config("gpt", hidden_size=128, ffn_hidden_size=512)
        before = _all_bytes()
        with torch.device("meta"):
            model = build_model(config)
        parallelize(model, mesh, parallel, dtype)
        model.to_empty(device=mesh.device)
        initialize(model, 1234)
        weights = MasterWeights(model, torch.float32 if mesh.world_size > 1 else dtype)
        optimizer = build_optimizer(weights.by_name, OptimizerConfig(lr=1e-3))
        parameters, found = sum(p.numel() for p in model.parameters()), []
        for last in (True, False):
            synchronise_gradients(model, last=last)
            model.loss(**micro_batch(config, mesh.dp.rank).arguments()).backward()
            if last:
                optimizer.step()
                weights.refresh()
                found.append(_all_bytes() - before)
                optimizer.zero_grad()
        return (_all_bytes() - before) / parameters, found[0] / parameters


def _all_bytes() -> int:
    gc.collect()
    with warnings.catch_warnings(action="ignore"):  # about deprecated names of torch
        tensors = [
            t
            for t in gc.get_objects()
            if isinstance(t, Tensor) and t.device.type == "cpu" and t.layout == torch.strided
        ]
    # a gradient may have no Python object that gc lists
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    storages = (local_shard(t).untyped_storage() for t in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def embedding_after_dropout(parallel: dict) -> Tensor:
    """This rank's input of the first block for a sequence that repeats one token, with dropout 0.5."""
    parallel = ParallelConfig(**parallel)
    with launch(parallel) as mesh:
        config = model_config("gpt", hidden_dropout=0.5, position_embedding_type="none")
        model = build(mesh, parallel, config, torch.float32)
        states = []
        model.layers[0].register_forward_pre_hook(
            lambda _module, arguments: states.append(arguments[0].detach().clone())
        )
        micro = dataclasses.replace(
            micro_batch(config, 0), tokens=torch.zeros(ROWS, LENGTH, dtype=torch.int64)
        )
        forward_backward(model, [micro], torch.ones(()), seed="0", place=dropout_place(mesh, parallel))
        return states[0]


def random_numbers_of_a_rank() -> tuple[Tensor, ...]:
    """Four draws: of the rank's own generator, again after the common generator is reset, the next one, and
    one of the common generator.
    """
    with launch(ParallelConfig(tensor_model_parallel_size=2)) as mesh:
        draws = []
        for _ in range(2):
            torch.manual_seed(7)
            with _random_numbers_of_rank(mesh.tp, mesh.device):
                draws.append(torch.rand(8))
        with _random_numbers_of_rank(mesh.tp, mesh.device):
            draws.append(torch.rand(8))
        return *draws, torch.rand(8)


def train_with_a_slow_rank(config: TrainConfig) -> None:
    """`mt train`; on rank 1 every feed-forward layer takes 20 ms more."""
    original = FeedForward.forward
    if os.environ["RANK"] == "1":
        FeedForward.forward = lambda *arguments, **context: (
            time.sleep(0.02) or original(*arguments, **context)
        )
    try:
        loop.train(config)
    finally:
        FeedForward.forward = original


def run_mt_train(config: TrainConfig, only_load: Path | None = None) -> dict | None:
    """`mt train` on this rank.

    only_load: a step directory. The trainer only loads it; the result on rank 0 is all its tensors, whole.
    """
    if only_load is None:
        return loop.train(config)
    found: dict = {}

    class Loaded(loop.Trainer):
        def _start_from(self, *_):
            return self._load(open_checkpoint(only_load), moments=True)

        def fit(self, began):
            found.update(
                gather_whole(named_tensors(self.model, self.weights.by_name, self.optimizer), self.mesh)
            )
            return False

    original, loop.Trainer = loop.Trainer, Loaded
    try:
        loop.train(config)
    finally:
        loop.Trainer = original
    return found


def build_stages(parallel: dict) -> int:
    """How many weights this rank allocates, copies included."""
    parallel = ParallelConfig(**parallel)
    with launch(parallel) as mesh:
        model = build(mesh, parallel, model_config("gpt"), torch.float32)
        storages = {
            storage.data_ptr(): storage.nbytes() // 4
            for stage in stages_of(model)
            for p in stage.parameters()
            for storage in (local_shard(p).untyped_storage(),)
        }
        return sum(storages.values())
