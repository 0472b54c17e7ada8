"""Converts settings to and from Hugging Face's config.json, by the tables of model/foreign_names.py."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from ...core.config import UserError, shown
from ...core.parsing import SETTINGS_BYTES, Range, check_value, read_json
from ..model.config import MOST_LAYERS, ModelConfig, ResolvedModelConfig, expert_layers, resolve
from ..model.family import family_of
from ..model.foreign_names import (
    OTHER_KEYS,
    Architecture,
    moe_layer_freq,
    window_attn_skip_freq,
)
from .architectures import ARCHITECTURES


def read_hf_config(directory: str | Path) -> tuple[str, ResolvedModelConfig]:
    """(architecture, settings) of the config.json in a directory."""
    file = Path(directory) / "config.json"
    if not file.exists():
        raise UserError(f"{directory}: has no config.json; give the directory of a Hugging Face model")
    raw = read_json(file, SETTINGS_BYTES)
    if not isinstance(raw, dict):
        raise UserError(
            f"{file}: must hold a model's settings, not a {type(raw).__name__}; give a Hugging Face model's"
            " config.json"
        )
    config = config_from_hf(raw, str(file))
    return raw["model_type"], config


def config_from_hf(raw: Mapping[str, Any], place: str) -> ResolvedModelConfig:
    """mt's settings for a config.json. place: begins messages.

    Raises UserError for a model that mt does not have.
    """
    name = raw.get("model_type")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(
            f"{place}: model_type is {shown(name)}; only {', '.join(ARCHITECTURES)} can be loaded"
        )
    architecture = ARCHITECTURES[name]
    if raw.get("quantization_config") is not None:
        raise UserError(
            f"{place}: quantization_config: the weights are quantised; give the model as it was before that"
        )
    raw = _by_their_names(raw, architecture.aliases, place)
    for key, value in raw.items():
        if not architecture.knows(key):
            raise UserError(
                f"{place}: {key} is {shown(value)}, which no {name} of mt has; remove it if the model is the"
                " same without it"
            )
    for key, needed in {**REQUIRED_OF_ALL, **architecture.requires}.items():
        if raw.get(key, needed) != needed:
            raise UserError(f"{place}: {key} is {shown(raw[key])}; only {needed!r} can be loaded as {name}")
    _check_types(raw, architecture, place)
    raw = {**architecture.absent, **raw}  # a null stays: sliding_window has a default, and null is none
    found = {ours: raw[key] for ours, key in architecture.keys.items() if raw.get(key) is not None}
    # transformers 5's name, beside num_experts
    local = raw.get("num_local_experts") if "num_local_experts" in architecture.reads else None
    if local is not None and found.setdefault("num_experts", local) != local:
        raise UserError(
            f"{place}: num_experts is {found['num_experts']} and num_local_experts is {local}; fetch the file"
            " again"
        )
    for ours in NEEDED:
        if ours in architecture.keys and ours not in found:
            raise UserError(f"{place}: has no {architecture.keys[ours]}; give a model's config.json")
    if "activation" in found:
        theirs = found["activation"]
        if theirs not in architecture.activations:
            raise UserError(
                f"{place}: {architecture.keys['activation']} is {shown(theirs)}; only"
                f" {' or '.join(map(repr, architecture.activations))} can be loaded as {name}"
            )
        found["activation"] = architecture.activations[theirs]
    found |= {**architecture.always, **architecture.read(raw, place), "make_vocab_size_divisible_by": 1}
    try:
        return resolve(ModelConfig(**found), vocab_size=found["vocab_size"], seq_length=512)
    except UserError as error:
        raise UserError("\n".join(f"{place}: {line}" for line in str(error).split("\n"))) from None


def _by_their_names(raw: Mapping[str, Any], aliases: Mapping[str, str], place: str) -> Mapping[str, Any]:
    """A config.json with the keys of Architecture.keys in place of their other names."""
    named = {key: value for key, value in raw.items() if key not in aliases}
    for alias, key in aliases.items():
        if raw.get(alias) is not None and named.setdefault(key, raw[alias]) != raw[alias]:
            raise UserError(
                f"{place}: {alias} is {shown(raw[alias])} and {key} is {shown(named[key])}, which are two"
                " names of the same; remove one"
            )
    return named


# keys whose other values change a model of any architecture
REQUIRED_OF_ALL: dict[str, Any] = {"pruned_heads": {}, "tie_encoder_decoder": False}
NEEDED = (
    "num_layers", "hidden_size", "num_attention_heads", "vocab_size", "num_experts", "mamba_num_heads",
    "mamba_head_dim",
)  # fmt: skip
# Keys whose null stands for a default: transformers computes it from other keys as `resolve` does.
NULLABLE = ("n_inner", "num_key_value_heads", "head_dim", "num_decoder_layers", "attention_dropout")


def _check_types(raw: Mapping[str, Any], architecture: Architecture, place: str) -> None:
    """Raises UserError for a value of another type than transformers takes; it would change the model."""
    # those that are needed are missed below
    nullable = (*NULLABLE, *(architecture.keys.get(ours) for ours in NEEDED))
    settings = typing.get_type_hints(ModelConfig)
    kinds = {key: settings[ours] for ours, key in architecture.keys.items()}
    kinds |= {key: _without_none(kind) for key, kind in kinds.items()}
    kinds |= {key: Annotated[kinds[key], Range(1, MOST_LAYERS)] for key in _counting_layers(architecture)}
    if "activation" in architecture.keys:
        kinds[architecture.keys["activation"]] = str
    for key, kind in {**OTHER_KEYS, **kinds}.items():
        if key in raw and not (raw[key] is None and key in nullable):
            check_value({key: raw[key]}, dict[str, kind], place)  # type: ignore[valid-type]


def _without_none(kind: Any) -> Any:
    """An annotation `X | None` as X."""
    inner = [k for k in typing.get_args(kind) if k is not type(None)]
    return inner[0] if type(None) in typing.get_args(kind) else kind


def _counting_layers(architecture: Architecture) -> list[str]:
    return [key for ours, key in architecture.keys.items() if ours in ("num_layers", "decoder_num_layers")]


def config_to_hf(config: ResolvedModelConfig) -> tuple[str, dict[str, Any]]:
    """(architecture, config.json) for mt's settings; raises UserError if Hugging Face has no such model."""
    export_as = family_of(config).export_as
    if export_as is None:
        raise UserError(
            f"Hugging Face has no such model: model.family = {config.family}; keep the checkpoint as it is"
        )
    name = export_as(config)
    architecture = ARCHITECTURES[name]
    written = {key: getattr(config, ours) for ours, key in architecture.keys.items()}
    if activation := architecture.keys.get("activation"):
        theirs = [name for name, ours in architecture.activations.items() if ours == config.activation]
        written[activation] = theirs[0] if theirs else None
    tied = not config.untie_embeddings_and_output_weights
    written = {
        "model_type": name,
        "architectures": [architecture.loaded_by],
        **written,
        "tie_word_embeddings": tied,
    }
    written |= architecture.write(config)
    _check_same(config, name, written)
    return name, written


# Settings that config.json lacks and that do not change the model: settings of training, and padding.
TRAINING_SETTINGS = (
    "make_vocab_size_divisible_by",
    "attention_backend",
    "init_method_std",
    "embedding_init_method_std",
    "hidden_dropout",
    "attention_dropout",
    "moe_aux_loss_coeff",
    "moe_router_load_balancing_type",
    "moe_z_loss_coeff",
    "moe_expert_capacity_factor",
    "moe_token_drop_policy",
    "moe_router_bias_update_rate",
)


def _check_same(config: ResolvedModelConfig, name: str, written: dict[str, Any]) -> None:
    """Raises UserError unless `written` converts back to the same model."""
    not_compared = [*TRAINING_SETTINGS, *ARCHITECTURES[name].without]
    if (config.rope_scaling or {}).get("rope_type") == "dynamic":
        not_compared.append("max_position_embeddings")  # config.json then has only the original length
    config = dataclasses.replace(
        config,
        window_attn_skip_freq=window_attn_skip_freq(config.windowed) if config.window_size else None,
    )
    if config.num_experts is not None:
        sparse = expert_layers(config.moe_layer_freq, config.num_layers)
        config = dataclasses.replace(config, moe_layer_freq=moe_layer_freq(sparse))
        if all(sparse):
            not_compared.append("ffn_hidden_size")  # of dense layers, and there is none
    same = {field: getattr(config, field) for field in not_compared}
    activation = ARCHITECTURES[name].keys.get("activation")
    try:
        # without an activation that they lack, the default is read, which is another one
        raw = {key: value for key, value in written.items() if key != activation or value}
        read = dataclasses.replace(config_from_hf(raw, name), **same)
    except UserError as error:
        raise UserError(f"this model is near to Hugging Face's {name}, but not the same: {error}") from None
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(read, field.name)
        if ours != theirs:
            raise UserError(
                f"Hugging Face has no such model: its {name} is the nearest, with {field.name} = {theirs}"
                f" instead of {ours}; it cannot be exported"
            )
