"""Hugging Face's Gemma, OLMo 2, Phi-3, StarCoder 2 and Granite: names of weights, and settings.

They are decoders of family gpt with some of the settings that config.VARIATIONS lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ...core.config import UserError, shown
from .config import ResolvedModelConfig
from .deepseek import nearest_deepseek
from .foreign_names import (
    ACTIVATIONS,
    GATING,
    GPT_ARCHITECTURES,
    LAYER_TYPES,
    LLAMA,
    LLAMA_BLOCK,
    LLAMA_KEYS,
    ROPE_KEYS,
    Architecture,
    BlockNames,
    WeightNames,
    gpt_architecture,
    read_biases,
    read_rope,
    read_tied,
    read_windows,
    write_biases,
    write_rope,
    write_windows,
)

Settings = Mapping[str, Any]

BASE = GPT_ARCHITECTURES["llama"]
WITHOUT_HEAD_DIM = {ours: key for ours, key in LLAMA_KEYS.items() if key != "head_dim"}


def _named(block: BlockNames, **more: Any) -> WeightNames:
    return dataclasses.replace(LLAMA, stacks={"layers": ("model.layers", block)}, **more)


def _scale(raw: Settings, scale: float) -> float | None:
    """softmax_scale, or None where it is the default."""
    channels = raw.get("head_dim") or raw["hidden_size"] // (raw["num_attention_heads"] or 1)  # 0 is refused
    return None if channels > 0 and scale == channels**-0.5 else scale


# Gemma (Gemma Team 2024, 2024, 2025)

GEMMA_KEYS = {**LLAMA_KEYS, "activation": "hidden_activation"}
GEMMA_ABSENT = {
    **{key: value for key, value in BASE.absent.items() if key != "hidden_act"},
    "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "num_key_value_heads": 4,
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256,
}  # fmt: skip
GEMMA_ALWAYS = {**BASE.always, "apply_layernorm_1p": True}
GEMMA_BLOCK: BlockNames = {
    **LLAMA_BLOCK,
    "mixer_output_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_output_norm": "post_feedforward_layernorm",
}
GEMMA_READS = frozenset({"attention_bias", "use_bidirectional_attention"})
GEMMA2_READS = GEMMA_READS | {
    "query_pre_attn_scalar", "sliding_window", "layer_types", "attn_logit_softcapping",
    "final_logit_softcapping",
}  # fmt: skip
GEMMA3_UNUSED = {"_sliding_window_pattern": "a copy of what layer_types says"}


def _gemma(raw: Settings, place: str) -> dict[str, Any]:
    if raw.get("use_bidirectional_attention"):
        raise UserError(
            f"{place}: use_bidirectional_attention is True; only models that look back can be loaded"
        )
    return {
        **read_tied(raw, default=True),
        **read_biases(raw, place),
        "embedding_multiplier": raw["hidden_size"] ** 0.5,
    }


def _read_gemma(raw: Settings, place: str) -> dict[str, Any]:
    # published files say "gelu" and mean its approximation, which transformers takes too
    if (activation := raw.get("hidden_activation", "gelu_pytorch_tanh")) not in (None, "gelu_pytorch_tanh"):
        raise UserError(
            f"{place}: hidden_activation is {shown(activation)}; only 'gelu_pytorch_tanh' can be loaded"
        )
    return {**_gemma(raw, place), **read_rope(raw, place)}


def _gemma2(raw: Settings, place: str, rule: list[bool]) -> dict[str, Any]:
    return {
        **_gemma(raw, place),
        **read_windows(raw, place, rule),
        "softmax_scale": _scale(raw, raw["query_pre_attn_scalar"] ** -0.5),
        "attn_logit_softcapping": raw.get("attn_logit_softcapping"),
        "final_logit_softcapping": raw.get("final_logit_softcapping"),
    }


def _read_gemma2(raw: Settings, place: str) -> dict[str, Any]:
    rule = [layer % 2 == 0 for layer in range(raw["num_hidden_layers"])]
    return {**_gemma2(raw, place, rule), **read_rope(raw, place)}


def _read_gemma3(raw: Settings, place: str) -> dict[str, Any]:
    every = raw.get("sliding_window_pattern", 6)
    found = _gemma2(raw, place, [(layer + 1) % every != 0 for layer in range(raw["num_hidden_layers"])])
    ropes = raw.get("rope_parameters") or {}
    for kind, rope in ropes.items():
        if kind not in LAYER_TYPES or not isinstance(rope, dict | None):
            raise UserError(
                f"{place}: rope_parameters has {shown(kind)}; only a mapping for each of"
                f" {' and '.join(LAYER_TYPES)} can be loaded"
            )
    whole, local = (ropes.get(kind) or {} for kind in LAYER_TYPES)
    bases = {"rope_theta": raw.get("rope_theta", 1e6), "local": raw.get("rope_local_base_freq", 1e4)}
    found |= read_rope({**raw, "rope_parameters": whole, "rope_theta": bases["rope_theta"]}, place)
    own = read_rope(
        {**raw, "rope_scaling": None, "rope_parameters": local, "rope_theta": bases["local"]}, place
    )
    if own["rope_scaling"] is not None:
        raise UserError(
            f"{place}: rope_parameters scales the positions of sliding_attention; only models that scale"
            " those of full_attention can be loaded"
        )
    if "window_size" in found and (own["rotary_base"] != found["rotary_base"] or found["rope_scaling"]):
        found["rotary_local_base"] = own["rotary_base"]
    return found


def _write_gemma(config: ResolvedModelConfig) -> dict[str, Any]:
    return {**write_rope(config), "attention_bias": config.add_attention_bias}


def _write_gemma2(config: ResolvedModelConfig) -> dict[str, Any]:
    scalar = config.kv_channels if config.softmax_scale is None else round(config.softmax_scale**-2)
    return {
        **_write_gemma(config),
        **write_windows(config),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


def _write_gemma3(config: ResolvedModelConfig) -> dict[str, Any]:
    written = _write_gemma2(config)
    local = config.rotary_local_base or config.rotary_base
    whole = written.pop("rope_parameters")
    written |= {
        "rope_parameters": {
            "full_attention": whole,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "rope_local_base_freq": local,
    }
    return written


# OLMo 2 (OLMo Team 2024)

OLMO2_BLOCK: BlockNames = {
    **{ours: theirs for ours, theirs in LLAMA_BLOCK.items() if not ours.endswith("_norm") or "." in ours},
    "mixer_output_norm": "post_attention_layernorm",
    "ffn_output_norm": "post_feedforward_layernorm",
}


def _read_olmo2(raw: Settings, place: str) -> dict[str, Any]:
    return {**read_tied(raw, default=False), **read_rope(raw, place), **read_biases(raw, place)}


# Phi-3 (Abdin et al. 2024)

PHI3_BLOCK: BlockNames = {
    **LLAMA_BLOCK,
    "mixer.qkv": "self_attn.qkv_proj",
    "ffn.gate": "mlp.gate_up_proj",
    "ffn.up": "mlp.gate_up_proj",
}


def _read_phi3(raw: Settings, place: str) -> dict[str, Any]:
    ropes = {}
    for key in ("rope_scaling", "rope_parameters"):
        rope = dict(raw.get(key) or {})
        kind = rope.pop("type", None)
        kind = rope.get("rope_type", kind or "default")
        if kind not in ("default", "longrope", "su", "yarn"):
            raise UserError(
                f"{place}: {key} has rope_type {shown(kind)}; only default and longrope can be loaded as phi3"
            )
        if kind != "default":  # the first files call it "su" or "yarn"
            length = raw["original_max_position_embeddings"]
            rope |= {"rope_type": "longrope", "original_max_position_embeddings": length}
        ropes[key] = rope
    return {
        **read_tied(raw, default=False),
        **read_rope({**raw, **ropes}, place, partial=True),
        "window_size": raw.get("sliding_window"),
    }


def _write_phi3(config: ResolvedModelConfig) -> dict[str, Any]:
    original = (config.rope_scaling or {}).get("original_max_position_embeddings")
    return {
        **write_rope(config),
        "sliding_window": config.window_size,
        "original_max_position_embeddings": original or config.max_position_embeddings,
        "embd_pdrop": config.hidden_dropout,
        # transformers' own is the id of a token that small vocabularies do not have
        "pad_token_id": None,
    }


# StarCoder 2 (Lozhkov et al. 2024)

STARCODER2_BLOCK: BlockNames = {**LLAMA_BLOCK, "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
STARCODER2_KEYS = {
    **WITHOUT_HEAD_DIM,
    "layernorm_epsilon": "norm_epsilon",
    "hidden_dropout": "residual_dropout",
    "add_bias_linear": "use_bias",
}


def _read_starcoder2(raw: Settings, place: str) -> dict[str, Any]:
    return {
        **read_tied(raw, default=True),
        **read_rope(raw, place),
        "window_size": raw.get("sliding_window"),
    }


def _write_starcoder2(config: ResolvedModelConfig) -> dict[str, Any]:
    return {
        **write_rope(config),
        "sliding_window": config.window_size,
        "embedding_dropout": config.hidden_dropout,
    }


# Granite (Granite Team 2024)

GRANITE_KEYS = {
    **WITHOUT_HEAD_DIM,
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_scaling",
}


def _read_granite(raw: Settings, place: str) -> dict[str, Any]:
    return {
        **read_tied(raw, default=False),
        **read_rope(raw, place),
        **read_biases(raw, place),
        "softmax_scale": _scale(raw, raw["attention_multiplier"]),
    }


def _write_granite(config: ResolvedModelConfig) -> dict[str, Any]:
    scale = config.kv_channels**-0.5 if config.softmax_scale is None else config.softmax_scale
    return {**write_rope(config), **write_biases(config), "attention_multiplier": scale}


DECODER_ARCHITECTURES: dict[str, Architecture] = {
    "gemma": dataclasses.replace(
        BASE,
        loaded_by="GemmaForCausalLM",
        activations={**GATING, "gelu": "geglu"},
        always=GEMMA_ALWAYS,
        absent={**BASE.absent, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256,
                "num_key_value_heads": 16, "tie_word_embeddings": True},
        requires={},
        read=_read_gemma,
        write=_write_gemma,
        reads=ROPE_KEYS | GEMMA_READS | {"hidden_activation"},
    ),
    "gemma2": dataclasses.replace(
        BASE,
        weights=_named(GEMMA_BLOCK),
        loaded_by="Gemma2ForCausalLM",
        keys=GEMMA_KEYS,
        always={**GEMMA_ALWAYS, "sublayer_norms": "both"},
        absent={**GEMMA_ABSENT, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        requires={},
        read=_read_gemma2,
        write=_write_gemma2,
        reads=ROPE_KEYS | GEMMA2_READS,
    ),
    "gemma3_text": dataclasses.replace(
        BASE,
        weights=_named(GEMMA_BLOCK),
        loaded_by="Gemma3ForCausalLM",
        keys=GEMMA_KEYS,
        always={**GEMMA_ALWAYS, "sublayer_norms": "both", "qk_layernorm": True},
        absent={**GEMMA_ABSENT, "max_position_embeddings": 131072},
        requires={"attn_logit_softcapping": None},  # transformers 5 has the key and does not use it
        read=_read_gemma3,
        write=_write_gemma3,
        reads=ROPE_KEYS | GEMMA2_READS | {"sliding_window_pattern", "rope_local_base_freq"},
        unused=GEMMA3_UNUSED,
    ),
    "olmo2": dataclasses.replace(
        BASE,
        weights=_named(OLMO2_BLOCK),
        loaded_by="Olmo2ForCausalLM",
        keys=WITHOUT_HEAD_DIM,
        always={**BASE.always, "sublayer_norms": "output", "qk_layernorm": True,
                "qk_layernorm_scope": "all_heads"},
        absent={**BASE.absent, "rms_norm_eps": 1e-5},
        requires={},
        read=_read_olmo2,
        write=_write_gemma,
        reads=ROPE_KEYS | {"attention_bias"},
    ),
    "phi3": dataclasses.replace(
        BASE,
        weights=_named(
            PHI3_BLOCK, part_by_part=("mixer.qkv.weight",), halves=("ffn.gate", "ffn.up")
        ),
        loaded_by="Phi3ForCausalLM",
        keys={**WITHOUT_HEAD_DIM, "hidden_dropout": "resid_pdrop"},
        absent={**BASE.absent, "rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
        requires={},
        read=_read_phi3,
        write=_write_phi3,
        reads=ROPE_KEYS | {"sliding_window", "original_max_position_embeddings"},
    ),
    "starcoder2": dataclasses.replace(
        BASE,
        weights=_named(STARCODER2_BLOCK),
        loaded_by="Starcoder2ForCausalLM",
        keys=STARCODER2_KEYS,
        activations=ACTIVATIONS,
        always={"position_embedding_type": "rope", "normalization": "LayerNorm"},
        absent={"norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 2,
                "initializer_range": 0.018042, "use_bias": True, "tie_word_embeddings": True},
        requires={},
        read=_read_starcoder2,
        write=_write_starcoder2,
        reads=ROPE_KEYS | {"sliding_window"},
        unused={"embedding_dropout": "of training, where mt has a setting of its own"},
    ),
    "granite": dataclasses.replace(
        BASE,
        loaded_by="GraniteForCausalLM",
        keys=GRANITE_KEYS,
        absent={**BASE.absent, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
                "logits_scaling": 1.0, "attention_multiplier": 1.0},
        requires={},
        read=_read_granite,
        write=_write_granite,
        reads=ROPE_KEYS | {"attention_bias", "mlp_bias", "attention_multiplier"},
    ),
}  # fmt: skip


def nearest_architecture(config: ResolvedModelConfig) -> str:
    """The architecture nearest to a model of family gpt; raises UserError for a hybrid."""
    if config.multi_latent_attention:
        return nearest_deepseek(config)
    if config.position_embedding_type == "alibi" and config.hybrid_override_pattern is None:
        return "bloom"
    if config.hybrid_override_pattern is not None or config.position_embedding_type != "rope":
        return gpt_architecture(config)
    if config.num_experts is not None:
        return gpt_architecture(config)
    if config.normalization == "LayerNorm" and config.activation not in GATING.values():
        return "starcoder2"
    if config.sublayer_norms == "output":
        return "olmo2"
    if config.apply_layernorm_1p or config.sublayer_norms == "both":
        if config.sublayer_norms == "input":
            return "gemma"
        return "gemma3_text" if config.qk_layernorm else "gemma2"
    if (config.rope_scaling or {}).get("rope_type") == "longrope" or config.rotary_percent != 1:
        return "phi3"
    multipliers = (config.embedding_multiplier, config.residual_multiplier, config.logits_scaling)
    if multipliers != (1, 1, 1) or config.softmax_scale is not None:
        return "granite"
    return gpt_architecture(config)
