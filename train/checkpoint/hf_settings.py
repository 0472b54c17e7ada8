"""Hugging Face's config.json <-> our settings, by the tables of architectures.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ...core.config import UserError
from ...core.manifest import read_json
from ..model.config import ModelConfig, expert_layers, resolve
from .architectures import ARCHITECTURES


def settings_of(directory: str | Path) -> tuple[str, ModelConfig]:
    """(architecture, our settings, resolved) of the config.json in a directory."""
    file = Path(directory) / "config.json"
    if not file.exists():
        raise UserError(f"{directory}: has no config.json; give the directory of a Hugging Face model")
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise UserError(
            f"{file}: must hold a model's settings, not a {type(raw).__name__}; give a Hugging Face model's"
            " config.json"
        )
    return raw.get("model_type"), settings_in(raw, str(file))


def settings_tree(directory: str | Path) -> dict:
    """The settings of a training run that `--hf DIR` gives: the model's but for how its vocabulary is padded."""
    _, config = settings_of(directory)
    return {
        "model": {
            f.name: getattr(config, f.name)
            for f in dataclasses.fields(config)
            if f.name != "make_vocab_size_divisible_by" and getattr(config, f.name) != f.default
        }
    }


def settings_in(raw: Mapping, place: str) -> ModelConfig:
    """Our settings, resolved, of a config.json's; raises UserError, which begins with `place`, for a model
    that is not ours.
    """
    name = raw.get("model_type")
    if name not in ARCHITECTURES:
        raise UserError(f"{place}: model_type is {name!r}; only {', '.join(ARCHITECTURES)} can be loaded")
    architecture = ARCHITECTURES[name]
    if "quantization_config" in raw:
        raise UserError(
            f"{place}: quantization_config: the weights are quantised; give the model as it was before that"
        )
    for key, needed in architecture.requires.items():
        if raw.get(key, needed) != needed:
            raise UserError(f"{place}: {key} is {raw[key]!r}; only {needed!r} can be loaded as {name}")
    raw = {**architecture.absent, **{key: value for key, value in raw.items() if value is not None}}
    found = {ours: raw[key] for ours, key in architecture.keys.items() if key in raw}
    # transformers 5 writes this name, others read it
    if "num_experts" in architecture.keys and "num_local_experts" in raw:
        found["num_experts"] = raw["num_local_experts"]
    needed = (
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "vocab_size",
        "num_experts",
        "mamba_num_heads",
        "mamba_head_dim",
    )
    for ours in needed:
        if ours in architecture.keys and ours not in found:
            raise UserError(f"{place}: has no {architecture.keys[ours]}; give a model's config.json")
    if "activation" in found:
        theirs = found["activation"]
        if theirs not in architecture.activations:
            raise UserError(
                f"{place}: {architecture.keys['activation']} is {theirs!r}; only"
                f" {' or '.join(map(repr, architecture.activations))} can be loaded as {name}"
            )
        found["activation"] = architecture.activations[theirs]
    found |= {**architecture.always, **_own_way_in(name, raw, place), "make_vocab_size_divisible_by": 1}
    return resolve(ModelConfig(**found), vocab_size=found["vocab_size"], seq_length=512)


def _own_way_in(name: str, raw: Mapping, place: str) -> dict:
    """What an architecture says in a way of its own."""
    tied = raw.get("tie_word_embeddings", name in ("gpt2", "gpt_bigcode", "bert", "t5"))
    if name == "bert":
        return {"bert_binary_head": raw.get("architectures") != ["BertForMaskedLM"]}
    if name == "t5":  # transformers 5 keeps in another key whether a model was made with a tied head
        return {"untie_embeddings_and_output_weights": not (tied and raw.get("scale_decoder_outputs", True))}
    if name == "gpt2":
        return {"untie_embeddings_and_output_weights": not tied}
    if name == "gpt_bigcode":
        return {
            "untie_embeddings_and_output_weights": not tied,
            "num_query_groups": 1 if raw.get("multi_query", True) else raw["n_head"],
        }
    if name == "mamba2":
        return {"untie_embeddings_and_output_weights": not tied, **_mamba_in(raw, place)}
    experts = _experts_in(raw) if name in ("qwen2_moe", "qwen3_moe") else {}
    return {
        "untie_embeddings_and_output_weights": not tied,
        "window_size": _window_in(name, raw, place),
        **_rope_in(raw, place),
        **experts,
    }


def _mamba_in(raw: Mapping, place: str) -> dict:
    inner = raw["num_heads"] * raw["head_dim"]
    if raw.get("expand", 2) * raw["hidden_size"] != inner:
        raise UserError(
            f"{place}: expand is {raw.get('expand', 2)}, which times hidden_size is not the {inner} of"
            " num_heads x head_dim; fetch the file again"
        )
    low, high = raw.get("time_step_limit", (0.0, float("inf")))
    if low != 0 or high not in (float("inf"), {"__float__": "Infinity"}):
        raise UserError(
            f"{place}: time_step_limit is {[low, high]}; only models whose time steps have no limit can be"
            " loaded"
        )
    # No layer asks for heads of attention; positions have no end.
    return {
        "hybrid_override_pattern": "M" * raw["num_hidden_layers"],
        "num_attention_heads": 1,
        "max_position_embeddings": 1 << 20,
    }


def _experts_in(raw: Mapping) -> dict:
    dense, step = raw.get("mlp_only_layers", ()), raw.get("decoder_sparse_step", 1)
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(raw["num_hidden_layers"])]
    return {
        "moe_layer_freq": _frequency(sparse),
        "moe_router_pre_softmax": not raw.get("norm_topk_prob", False),
    }


def _frequency(sparse: list[bool]) -> str:
    """The one spelling of moe_layer_freq that is used here."""
    return "1" if all(sparse) else f"[{','.join(map(str, map(int, sparse)))}]"


def _window_in(name: str, raw: Mapping, place: str) -> int | None:
    if name == "mixtral":
        return raw.get("sliding_window")
    if name != "mistral" and not raw.get("use_sliding_window"):
        return None
    if name.startswith("qwen") and raw.get("max_window_layers", 28) > 0:
        raise UserError(
            f"{place}: max_window_layers is {raw.get('max_window_layers', 28)}: some layers have a window and"
            " others do not; only one window for all can be loaded"
        )
    return raw.get("sliding_window", 4096 if name == "mistral" else None)


def _rope_in(raw: Mapping, place: str) -> dict:
    # the old and the new place
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    if (part := rope.pop("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1:
        raise UserError(
            f"{place}: partial_rotary_factor is {part}; only models that rotate all channels of a head can be"
            " loaded"
        )
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    base = rope.pop("rope_theta", raw.get("rope_theta", 10000.0))
    if rope["rope_type"] in ("llama3", "yarn", "dynamic"):
        rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    found = {"rotary_base": base, "rope_scaling": None if rope["rope_type"] == "default" else rope}
    # whose max_position_embeddings is the original length: it is for longer ones
    if rope["rope_type"] == "dynamic":
        found["max_position_embeddings"] = int(rope["original_max_position_embeddings"] * rope["factor"])
    return found


def settings_out(config: ModelConfig) -> tuple[str, dict]:
    """(architecture, config.json) of our settings, resolved; raises UserError where Hugging Face has no such
    model.
    """
    name = _nearest(config)
    architecture = ARCHITECTURES[name]
    written = {key: getattr(config, ours) for ours, key in architecture.keys.items()}
    if activation := architecture.keys.get("activation"):
        written[activation] = next(
            (theirs for theirs, ours in architecture.activations.items() if ours == config.activation), None
        )
    tied = not config.untie_embeddings_and_output_weights
    written = {
        "model_type": name,
        "architectures": [architecture.loaded_by],
        **written,
        "tie_word_embeddings": tied,
    }
    if name == "bert" and not config.bert_binary_head:
        written["architectures"] = ["BertForMaskedLM"]
    if name in ("gpt2", "gpt_bigcode"):
        written["embd_pdrop"] = config.hidden_dropout
    if name == "gpt_bigcode":
        written["multi_query"] = config.num_query_groups == 1
    if config.position_embedding_type == "rope":
        scaling = config.rope_scaling or {"rope_type": "default"}
        written["rope_parameters"] = {**scaling, "rope_theta": config.rotary_base}
        if scaling["rope_type"] == "dynamic":
            written["max_position_embeddings"] = scaling["original_max_position_embeddings"]
        # where transformers 4 looks
        written |= {
            "rope_theta": config.rotary_base,
            "rope_scaling": config.rope_scaling and dict(config.rope_scaling),
        }
    if name in ("mistral", "mixtral"):
        written["sliding_window"] = config.window_size
    if name in ("qwen2_moe", "qwen3_moe"):
        dense = [
            layer
            for layer, sparse in enumerate(expert_layers(config.moe_layer_freq, config.num_layers))
            if not sparse
        ]
        written |= {
            "mlp_only_layers": dense,
            "decoder_sparse_step": 1,
            "norm_topk_prob": not config.moe_router_pre_softmax,
        }
    if name == "mamba2":
        expand = config.mamba_num_heads * config.mamba_head_dim / config.hidden_size
        written |= {"expand": int(expand) if expand.is_integer() else expand, "hidden_act": "silu"}
    _check_same(config, name, written)
    return name, written


def _nearest(config: ModelConfig) -> str:
    if config.family == "ict":
        raise UserError(
            "Hugging Face has no such model: model.family = ict is two BERTs and projections of their states;"
            " keep it as it is"
        )
    if config.family != "gpt":
        return config.family
    if (pattern := config.hybrid_override_pattern) is not None:
        if set(pattern) != {"M"}:
            raise UserError(
                f"Hugging Face has no such model: hybrid_override_pattern = {pattern}; only one of M alone"
                " can be exported"
            )
        return "mamba2"
    if config.num_experts is not None and config.position_embedding_type == "rope":
        return (
            "qwen2_moe"
            if config.moe_shared_expert_intermediate_size
            else "qwen3_moe"
            if config.qk_layernorm
            else "mixtral"
        )
    if config.position_embedding_type == "learned":
        return "gpt2" if config.num_query_groups == config.num_attention_heads else "gpt_bigcode"
    if config.window_size is not None:
        return "mistral"
    return "qwen3" if config.qk_layernorm else "qwen2" if config.add_qkv_bias else "llama"


# Settings that no config.json has and that change no model: how it is trained, and what pads it.
ELSEWHERE = (
    "make_vocab_size_divisible_by", "attention_backend", "init_method_std", "hidden_dropout", "attention_dropout", "moe_aux_loss_coeff",
    "moe_z_loss_coeff", "moe_expert_capacity_factor", "moe_token_drop_policy", "moe_router_bias_update_rate",
)  # fmt: skip
# Settings of attention and feed-forward layers, of which a model of Mamba layers has none; T5's positions are
# distances.
WITHOUT = {
    "t5": ("max_position_embeddings",),
    "mamba2": (
        "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size", "activation", "add_bias_linear", "add_qkv_bias", "qk_layernorm",
        "window_size", "max_position_embeddings",
    ),
}  # fmt: skip


def _check_same(config: ModelConfig, name: str, written: dict) -> None:
    """Raises UserError unless what is written, read again, is the same model."""
    # config.json then says the original length alone
    dynamic = (config.rope_scaling or {}).get("rope_type") == "dynamic"
    elsewhere = {
        field: getattr(config, field)
        for field in (*ELSEWHERE, *WITHOUT.get(name, ()), *(["max_position_embeddings"] if dynamic else []))
    }
    if config.num_experts is not None:
        sparse = expert_layers(config.moe_layer_freq, config.num_layers)
        config = dataclasses.replace(config, moe_layer_freq=_frequency(sparse))
        if all(sparse):
            elsewhere["ffn_hidden_size"] = config.ffn_hidden_size  # no layer has it
    try:
        read = dataclasses.replace(settings_in(written, name), **elsewhere)
    except UserError as error:
        raise UserError(f"this model is near to Hugging Face's {name}, but not the same: {error}") from None
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(read, field.name)
        if ours != theirs:
            raise UserError(
                f"Hugging Face has no such model: its {name} is the nearest, with {field.name} = {theirs}"
                f" instead of {ours}; it cannot be exported"
            )
