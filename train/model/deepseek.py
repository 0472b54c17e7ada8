"""Hugging Face's DeepSeek V2 and V3: names of weights, and settings.

They are decoders of family gpt with multi-latent attention, dense first layers, then mixtures of experts with
shared experts. V2 (https://arxiv.org/abs/2405.04434) chooses experts by softmax, V3
(https://arxiv.org/abs/2412.19437) by sigmoids and a bias. transformers' classes are what is compared with:
the norms of their latents have an epsilon of their own, and V2's ignores norm_topk_prob.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...core.config import UserError, shown
from .config import ResolvedModelConfig, expert_layers
from .foreign_names import (
    GPT_ARCHITECTURES,
    LLAMA,
    LLAMA_BLOCK,
    LLAMA_KEYS,
    ROPE_KEYS,
    Architecture,
    BlockNames,
    because,
    experts,
    moe_layer_freq,
    read_rope,
    read_tied,
    write_rope,
)

Settings = Mapping[str, Any]

BASE = GPT_ARCHITECTURES["llama"]
LATENT_EPSILON = 1e-6  # of the norms of latents, whatever rms_norm_eps says
GROUP_SCORE_TOPK = 2  # V3: best experts of a group whose scores are added up
BLOCK: BlockNames = {
    **{ours: theirs for ours, theirs in LLAMA_BLOCK.items() if not ours.startswith("mixer.")},
    "mixer.query": "self_attn.q_proj",
    "mixer.query_down": "self_attn.q_a_proj",
    "mixer.query_norm": "self_attn.q_a_layernorm",
    "mixer.query_up": "self_attn.q_b_proj",
    "mixer.key_value_down": "self_attn.kv_a_proj_with_mqa",
    "mixer.key_value_norm": "self_attn.kv_a_layernorm",
    "mixer.key_value_up": "self_attn.kv_b_proj",
    "mixer.out": "self_attn.o_proj",
    **experts("mlp", "gate_proj", "up_proj", "down_proj"),
    "ffn.router.expert_bias": "mlp.gate.e_score_correction_bias",
    "ffn.shared.gate": "mlp.shared_experts.gate_proj",
    "ffn.shared.up": "mlp.shared_experts.up_proj",
    "ffn.shared.down": "mlp.shared_experts.down_proj",
}
KEYS = {
    **{ours: key for ours, key in LLAMA_KEYS.items() if key != "head_dim"},
    "kv_lora_rank": "kv_lora_rank",
    "qk_head_dim": "qk_nope_head_dim",
    "qk_pos_emb_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "num_experts": "n_routed_experts",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "moe_router_topk": "num_experts_per_tok",
    "add_attention_bias": "attention_bias",
}
ABSENT = {
    **BASE.absent,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "attention_bias": False,
}  # fmt: skip
READS = ROPE_KEYS | {
    "q_lora_rank", "n_shared_experts", "first_k_dense_replace", "routed_scaling_factor", "n_group",
    "topk_group", "topk_method", "norm_topk_prob", "head_dim", "qk_head_dim",
}  # fmt: skip
UNUSED = because(
    {
        "of training, where mt has a setting of its own": "aux_loss_alpha seq_aux",
        "the layout of a run": "ep_size",
        "layers that predict later tokens, which transformers does not run": "num_nextn_predict_layers",
    }
)


def _read(raw: Settings, place: str) -> dict[str, Any]:
    """The settings that both have."""
    rotated, flat = raw["qk_rope_head_dim"], raw["qk_nope_head_dim"]
    for key, follows in (("head_dim", rotated), ("qk_head_dim", rotated + flat)):
        if raw.get(key, follows) != follows:
            raise UserError(
                f"{place}: {key} is {shown(raw[key])}, and qk_rope_head_dim and qk_nope_head_dim make it"
                f" {follows}; remove it"
            )
    if raw.get("num_experts_per_tok") is None:
        raise UserError(f"{place}: has no num_experts_per_tok; give a model's config.json")
    dense, factor = raw["first_k_dense_replace"], raw["routed_scaling_factor"]
    epsilon = raw["rms_norm_eps"]
    return {
        **read_tied(raw, default=False),
        **read_rope(raw, place),
        "q_lora_rank": raw["q_lora_rank"],
        "latent_layernorm_epsilon": None if epsilon == LATENT_EPSILON else LATENT_EPSILON,
        "moe_layer_freq": moe_layer_freq([layer >= dense for layer in range(raw["num_hidden_layers"])]),
        "moe_shared_expert_intermediate_size": raw["n_shared_experts"] * raw["moe_intermediate_size"],
        "moe_router_topk_scaling_factor": None if factor == 1 else factor,
    }


def _groups(raw: Settings, place: str, scored: int) -> dict[str, Any]:
    """scored: best experts of a group whose scores are added up."""
    groups, best = raw.get("n_group"), raw.get("topk_group")
    if groups is None or best is None:
        raise UserError(f"{place}: has no {'n_group' if groups is None else 'topk_group'}; give both")
    same = scored == raw["num_experts_per_tok"] // best
    return {
        "moe_router_num_groups": groups,
        "moe_router_group_topk": best,
        "moe_router_group_score_topk": None if same else scored,
    }


def _read_v2(raw: Settings, place: str) -> dict[str, Any]:
    method = raw["topk_method"]
    if method not in ("greedy", "group_limited_greedy"):
        raise UserError(
            f"{place}: topk_method is {shown(method)}; only 'greedy' and 'group_limited_greedy' can be loaded"
        )
    return {**_read(raw, place), **(_groups(raw, place, 1) if method != "greedy" else {})}


def _read_v3(raw: Settings, place: str) -> dict[str, Any]:
    normalised, chosen = raw["norm_topk_prob"], raw["num_experts_per_tok"]
    if normalised != (chosen > 1):
        raise UserError(
            f"{place}: norm_topk_prob is {normalised} with num_experts_per_tok = {chosen}; only"
            f" {not normalised} can be loaded"
        )
    whole = (raw.get("n_group"), raw.get("topk_group")) == (1, 1)
    return {**_read(raw, place), **({} if whole else _groups(raw, place, GROUP_SCORE_TOPK))}


def _write(config: ResolvedModelConfig) -> dict[str, Any]:
    sparse = expert_layers(config.moe_layer_freq, config.num_layers)
    shared = config.moe_shared_expert_intermediate_size or 0
    if not shared or shared % config.expert_size:
        raise UserError(
            "Hugging Face has no such model: its shared experts are as wide as the others, and"
            f" moe_shared_expert_intermediate_size = {config.moe_shared_expert_intermediate_size} is not a"
            f" multiple of moe_ffn_hidden_size = {config.expert_size}; it cannot be exported"
        )
    return {
        **write_rope(config),
        "q_lora_rank": config.q_lora_rank,
        "n_shared_experts": shared // config.expert_size,
        "first_k_dense_replace": sparse.index(True) if True in sparse else len(sparse),
        "routed_scaling_factor": config.moe_router_topk_scaling_factor or 1.0,
        "n_group": config.moe_router_num_groups,
        "topk_group": config.moe_router_group_topk,
    }


def _write_v2(config: ResolvedModelConfig) -> dict[str, Any]:
    method = "greedy" if config.moe_router_num_groups is None else "group_limited_greedy"
    return {**_write(config), "topk_method": method, "norm_topk_prob": False}


def _write_v3(config: ResolvedModelConfig) -> dict[str, Any]:
    return {
        **_write(config),
        "n_group": config.moe_router_num_groups or 1,
        "topk_group": config.moe_router_group_topk or 1,
        "norm_topk_prob": config.moe_router_topk > 1,
    }


_V2 = dataclasses.replace(
    BASE,
    weights=dataclasses.replace(LLAMA, stacks={"layers": ("model.layers", BLOCK)}),
    loaded_by="DeepseekV2ForCausalLM",
    keys=KEYS,
    always={
        **BASE.always, "multi_latent_attention": True, "qk_layernorm": True, "moe_router_pre_softmax": True,
    },
    absent={
        **ABSENT, "max_position_embeddings": 2048, "n_routed_experts": 64, "moe_intermediate_size": 1407,
        "n_shared_experts": 2, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0,
        "topk_method": "greedy",
    },
    requires={
        "pretraining_tp": 1, "mlp_bias": False, "norm_topk_prob": False, "scoring_func": "softmax",
        "moe_layer_freq": 1,
    },
    read=_read_v2,
    write=_write_v2,
    reads=READS,
    unused=UNUSED,
)  # fmt: skip
DEEPSEEK_ARCHITECTURES: dict[str, Architecture] = {
    "deepseek_v2": _V2,
    "deepseek_v3": dataclasses.replace(
        _V2,
        loaded_by="DeepseekV3ForCausalLM",
        always={
            **BASE.always, "multi_latent_attention": True, "qk_layernorm": True,
            "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True,
        },
        absent={
            **ABSENT, "max_position_embeddings": 4096, "n_routed_experts": 256, "num_key_value_heads": 128,
            "moe_intermediate_size": 2048, "num_experts_per_tok": 8, "n_shared_experts": 1,
            "first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4,
            "norm_topk_prob": True,
        },
        requires={
            "pretraining_tp": 1, "rope_interleave": True, "scoring_func": "sigmoid",
            "topk_method": "noaux_tc", "moe_layer_freq": 1,
        },
        read=_read_v3,
        write=_write_v3,
    ),
}  # fmt: skip


def nearest_deepseek(config: ResolvedModelConfig) -> str:
    """The architecture nearest to a model with multi-latent attention."""
    if config.hybrid_override_pattern is not None or config.num_experts is None:
        raise UserError(
            "Hugging Face has no such model: its models with multi-latent attention have mixtures of experts;"
            " it cannot be exported"
        )
    return "deepseek_v3" if config.moe_router_score_function == "sigmoid" else "deepseek_v2"
