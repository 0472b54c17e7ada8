"""What Hugging Face calls our settings and weights, for each of its architectures, both ways.

An architecture here is the `model_type` of a config.json. Weights are renamed and reshaped one of ours at a
time, so that a model never has to be in memory twice.

Legend: G groups (of heads: key-value groups, or those of Mamba-2), V padded vocabulary, D hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ...core.config import UserError
from ..model.config import GATED, ModelConfig
from ..model.mamba import WIDTH
from ..model.t5 import DISTANCE_BUCKETS, MAX_DISTANCE


@dataclasses.dataclass(frozen=True)
class Weights:
    """Our modules -> Hugging Face's, or several whose rows ours holds group by group (queries, keys, values).

    A parameter may stand there by its whole name, with the whole name of theirs; `{expert}` in it means one
    for each expert, which ours stacks.
    """

    top: Mapping[str, str]
    # our list of blocks -> (theirs, the modules of a block)
    stacks: Mapping[str, tuple[str, Mapping[str, str | tuple[str, ...]]]]
    base: str = ""  # what some checkpoints put before every name of the body and others do not
    transposed: tuple[str, ...] = ()  # our modules whose matrix stands there as (in, out), as GPT-2's do
    # those that have there all queries, then all keys, then all values; ours goes group by group
    part_by_part: tuple[str, ...] = ()


LLAMA_BLOCK = {
    "mixer_norm": "input_layernorm",
    "mixer.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mixer.query_norm": "self_attn.q_norm",
    "mixer.key_norm": "self_attn.k_norm",
    "mixer.out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
LLAMA = Weights(
    {"embedding": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"},
    {"layers": ("model.layers", LLAMA_BLOCK)},
    "model.",
)


def _experts(mixture: str, gate: str, up: str, down: str) -> dict[str, str]:
    """A mixture in the place of Llama's feed-forward layer."""
    names = {"gate": gate, "up": up, "down": down}
    return {
        "ffn.router": f"{mixture}.gate",
        **{
            f"ffn.experts.{ours}": f"{mixture}.experts.{{expert}}.{theirs}.weight"
            for ours, theirs in names.items()
        },
    }


MIXTRAL_BLOCK = {**LLAMA_BLOCK, **_experts("block_sparse_moe", "w1", "w3", "w2")}
QWEN_MOE_BLOCK = {
    **LLAMA_BLOCK,
    **_experts("mlp", "gate_proj", "up_proj", "down_proj"),
    "ffn.shared.gate": "mlp.shared_expert.gate_proj",
    "ffn.shared.up": "mlp.shared_expert.up_proj",
    "ffn.shared.down": "mlp.shared_expert.down_proj",
    "ffn.shared_gate": "mlp.shared_expert_gate",
}
MAMBA_BLOCK = {
    "mixer_norm": "norm",
    "mixer.projection": "mixer.in_proj",
    "mixer.convolution": "mixer.conv1d.weight",
    "mixer.convolution_bias": "mixer.conv1d.bias",
    "mixer.dt_bias": "mixer.dt_bias",
    "mixer.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.norm_weight": "mixer.norm.weight",
    "mixer.out": "mixer.out_proj",
}
MAMBA = Weights(
    {"embedding": "backbone.embeddings", "norm": "backbone.norm_f", "output": "lm_head"},
    {"layers": ("backbone.layers", MAMBA_BLOCK)},
    "backbone.",
    part_by_part=("mixer.projection.weight", "mixer.convolution", "mixer.convolution_bias"),
)
GPT2_BLOCK = {
    "mixer_norm": "ln_1", "mixer.qkv": "attn.c_attn", "mixer.out": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj",
}  # fmt: skip
GPT2_TOP = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "output": "lm_head",
}
BERT_BLOCK = {
    "mixer.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "mixer.out": "attention.output.dense",
    "mixer_norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
BERT_TOP = {
    "embedding": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "token_types": "bert.embeddings.token_type_embeddings",
    "norm": "bert.embeddings.LayerNorm",
    "head": "cls.predictions",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "pooler": "bert.pooler.dense",
    "binary_head": "cls.seq_relationship",
}


def _t5_block(*, cross: bool) -> dict[str, str | tuple[str, ...]]:
    names: dict[str, str | tuple[str, ...]] = {
        "mixer_norm": "layer.0.layer_norm",
        "mixer.qkv": tuple(f"layer.0.SelfAttention.{n}" for n in "qkv"),
        "mixer.out": "layer.0.SelfAttention.o",
    }
    if cross:
        names |= {
            "cross_norm": "layer.1.layer_norm",
            "cross.query": "layer.1.EncDecAttention.q",
            "cross.key_value": ("layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
            "cross.out": "layer.1.EncDecAttention.o",
        }
    ffn = f"layer.{1 + cross}"
    return {
        **names,
        "ffn_norm": f"{ffn}.layer_norm",
        "ffn.gate": f"{ffn}.DenseReluDense.wi_0",
        "ffn.up": f"{ffn}.DenseReluDense.wi_1",
        "ffn.down": f"{ffn}.DenseReluDense.wo",
    }


T5_TOP = {
    "embedding": "shared",
    "encoder_norm": "encoder.final_layer_norm",
    "decoder_norm": "decoder.final_layer_norm",
    "encoder_bias.table": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "decoder_bias.table": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "output": "lm_head",
}
T5_STACKS = {
    "encoder": ("encoder.block", _t5_block(cross=False)),
    "decoder": ("decoder.block", _t5_block(cross=True)),
}
# Our settings -> Hugging Face's keys.
LLAMA_KEYS = {
    "num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads", "num_query_groups": "num_key_value_heads", "kv_channels": "head_dim",
    "max_position_embeddings": "max_position_embeddings", "layernorm_epsilon": "rms_norm_eps", "vocab_size": "vocab_size",
    "activation": "hidden_act", "init_method_std": "initializer_range", "attention_dropout": "attention_dropout",
}  # fmt: skip
MIXTRAL_KEYS = {
    **LLAMA_KEYS,
    "moe_ffn_hidden_size": "intermediate_size",
    "num_experts": "num_local_experts",
    "moe_router_topk": "num_experts_per_tok",
}
QWEN_MOE_KEYS = {
    **LLAMA_KEYS,
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "num_experts": "num_experts",
    "moe_router_topk": "num_experts_per_tok",
}
MAMBA_KEYS = {
    "num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "layernorm_epsilon": "layer_norm_epsilon", "vocab_size": "vocab_size",
    "mamba_num_heads": "num_heads", "mamba_head_dim": "head_dim", "mamba_num_groups": "n_groups", "mamba_state_dim": "state_size",
    "init_method_std": "initializer_range",
}  # fmt: skip
GPT2_KEYS = {
    "num_layers": "n_layer", "hidden_size": "n_embd", "ffn_hidden_size": "n_inner", "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions", "layernorm_epsilon": "layer_norm_epsilon", "vocab_size": "vocab_size",
    "activation": "activation_function", "init_method_std": "initializer_range", "hidden_dropout": "resid_pdrop", "attention_dropout": "attn_pdrop",
}  # fmt: skip
BERT_KEYS = {
    "num_layers": "num_hidden_layers", "hidden_size": "hidden_size", "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads", "max_position_embeddings": "max_position_embeddings", "layernorm_epsilon": "layer_norm_eps",
    "vocab_size": "vocab_size", "activation": "hidden_act", "init_method_std": "initializer_range",
    "hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob",
}  # fmt: skip
T5_KEYS = {
    "num_layers": "num_layers", "decoder_num_layers": "num_decoder_layers", "hidden_size": "d_model", "ffn_hidden_size": "d_ff",
    "num_attention_heads": "num_heads", "kv_channels": "d_kv", "layernorm_epsilon": "layer_norm_epsilon", "vocab_size": "vocab_size",
    "activation": "feed_forward_proj", "hidden_dropout": "dropout_rate",
}  # fmt: skip
# Hugging Face's activations -> ours; of two that mean the same the first is written.
PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
}
GATING = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
T5_ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu_tanh", "gated-gelu": "geglu", "gated-silu": "swiglu"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    weights: Weights
    loaded_by: str  # the class of transformers
    keys: Mapping[str, str]
    activations: Mapping[str, str]
    always: Mapping  # our settings that are so in all of its models
    absent: Mapping  # what a key means where config.json does not have it
    requires: Mapping  # what a key must say, if it is there, for our model to be the same


LLAMA_SHAPE = {"position_embedding_type": "rope", "normalization": "RMSNorm", "add_bias_linear": False}
LLAMA_ABSENT = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "initializer_range": 0.02}
LLAMA_REQUIRES = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
GPT2_ABSENT = {"layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
GPT2_REQUIRES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
T5_SHAPE = {
    "family": "t5",
    "position_embedding_type": "relative",
    "normalization": "RMSNorm",
    "add_bias_linear": False,
}
GPT2_MATRICES = ("mixer.qkv", "mixer.out", "ffn.up", "ffn.down")
GPT2 = Weights(
    GPT2_TOP,
    {"layers": ("transformer.h", GPT2_BLOCK)},
    "transformer.",
    GPT2_MATRICES,
    ("mixer.qkv.weight", "mixer.qkv.bias"),
)
BIGCODE = Weights(GPT2_TOP, {"layers": ("transformer.h", GPT2_BLOCK)}, "transformer.")
BERT = Weights(BERT_TOP, {"layers": ("bert.encoder.layer", BERT_BLOCK)}, "bert.")


def _llama(loaded_by: str, **absent) -> Architecture:
    return Architecture(
        LLAMA, loaded_by, LLAMA_KEYS, GATING, LLAMA_SHAPE, {**LLAMA_ABSENT, **absent}, LLAMA_REQUIRES
    )


def _qwen(loaded_by: str, always: Mapping, **absent) -> Architecture:
    return dataclasses.replace(_llama(loaded_by, **absent), always={**LLAMA_SHAPE, **always})


def _mixture(architecture: Architecture, block: Mapping, keys: Mapping, **absent) -> Architecture:
    """An architecture of Llama's kind with experts."""
    weights = dataclasses.replace(LLAMA, stacks={"layers": ("model.layers", block)})
    return dataclasses.replace(
        architecture, weights=weights, keys=keys, absent={**architecture.absent, **absent}
    )


ARCHITECTURES = {
    "gpt2": Architecture(GPT2, "GPT2LMHeadModel", GPT2_KEYS, PLAIN, {}, {**GPT2_ABSENT, "activation_function": "gelu_new"}, GPT2_REQUIRES),
    "gpt_bigcode": Architecture(BIGCODE, "GPTBigCodeForCausalLM", GPT2_KEYS, PLAIN, {}, {**GPT2_ABSENT, "activation_function": "gelu_pytorch_tanh"}, GPT2_REQUIRES),
    "llama": _llama("LlamaForCausalLM"),
    "mistral": _llama("MistralForCausalLM", num_key_value_heads=8),
    "qwen2": _qwen("Qwen2ForCausalLM", {"add_qkv_bias": True}),
    "qwen3": _qwen("Qwen3ForCausalLM", {"qk_layernorm": True}, head_dim=128),
    "mixtral": _mixture(
        _llama("MixtralForCausalLM", num_key_value_heads=8, rms_norm_eps=1e-5), MIXTRAL_BLOCK, MIXTRAL_KEYS, num_local_experts=8, num_experts_per_tok=2,
    ),
    "qwen2_moe": _mixture(
        _qwen("Qwen2MoeForCausalLM", {"add_qkv_bias": True, "moe_shared_expert_gate": True}), QWEN_MOE_BLOCK,
        {**QWEN_MOE_KEYS, "moe_shared_expert_intermediate_size": "shared_expert_intermediate_size"}, num_experts_per_tok=4,
    ),
    "qwen3_moe": _mixture(_qwen("Qwen3MoeForCausalLM", {"qk_layernorm": True}), QWEN_MOE_BLOCK, QWEN_MOE_KEYS, num_experts_per_tok=8),
    "mamba2": Architecture(
        MAMBA, "Mamba2ForCausalLM", MAMBA_KEYS, {}, {"position_embedding_type": "none", "normalization": "RMSNorm", "add_bias_linear": False},
        {"layer_norm_epsilon": 1e-5, "n_groups": 8, "state_size": 128, "initializer_range": 0.1},
        {"use_bias": False, "use_conv_bias": True, "conv_kernel": WIDTH, "rms_norm": True, "hidden_act": "silu"},
    ),
    "bert": Architecture(
        BERT, "BertForPreTraining", BERT_KEYS, PLAIN, {"family": "bert", "post_norm": True},
        {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "max_position_embeddings": 512, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        {"position_embedding_type": "absolute", "type_vocab_size": 2, "is_decoder": False},
    ),
    "t5": Architecture(
        Weights(T5_TOP, T5_STACKS), "T5ForConditionalGeneration", T5_KEYS, T5_ACTIVATIONS, T5_SHAPE,
        {"layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "dropout_rate": 0.1},
        {"relative_attention_num_buckets": DISTANCE_BUCKETS, "relative_attention_max_distance": MAX_DISTANCE},
    ),
}  # fmt: skip


def weights_in(
    architecture: str,
    shapes: Mapping[str, torch.Size],
    config: ModelConfig,
    available: Container[str],
    read: Callable[[str], Tensor],
    place: str,
) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) of every weight in `shapes`, read from Hugging Face's.

    available: the names that are there. read: gives one of them. place: what to name in a message. Raises
    UserError for a weight that is missing or of another shape.
    """
    weights = ARCHITECTURES[architecture].weights
    for name, shape in shapes.items():
        names = []
        for there in _names(name, weights, config):
            short = there.removeprefix(weights.base)
            if there not in available and short not in available:
                raise UserError(
                    f"{place}: has no weight {there}; give a whole {architecture} model's directory"
                )
            names.append(there if there in available else short)
        tensor = _join([read(n) for n in names], name, weights, config)
        if _is_padded(name) and len(tensor) == config.vocab_size:
            tensor = torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), *tensor.shape[1:])])
        if tensor.shape != shape:
            raise UserError(
                f"{place}: {name} has shape {tuple(tensor.shape)}, config.json says {tuple(shape)}; fetch the"
                " model again"
            )
        yield name, tensor


def weights_out(
    architecture: str, ours: Iterable[tuple[str, Tensor]], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face's name, tensor) of our weights; the rows that pad the vocabulary are left out."""
    weights = ARCHITECTURES[architecture].weights
    for name, tensor in ours:
        names = _names(name, weights, config)
        tensor = tensor[: config.vocab_size] if _is_padded(name) else tensor
        yield from zip(names, _split(tensor, name, len(names), weights, config), strict=True)


def foreign_names(architecture: str, names: Iterable[str], config: ModelConfig) -> set[str]:
    """What Hugging Face calls our weights."""
    return {there for name in names for there in _names(name, ARCHITECTURES[architecture].weights, config)}


def _names(name: str, weights: Weights, config: ModelConfig) -> tuple[str, ...]:
    """Hugging Face's names of what our weight `name` holds."""
    prefix, modules, rest = "", weights.top, name
    if (stack := name.split(".")[0]) in weights.stacks:
        prefix, modules = weights.stacks[stack]
        _, layer, rest = name.split(".", 2)
        prefix = f"{prefix}.{layer}."
    if rest in modules:
        whole = prefix + modules[rest]
        return (
            tuple(whole.format(expert=e) for e in range(config.num_experts))
            if "{expert}" in whole
            else (whole,)
        )
    module, kind = rest.rsplit(".", 1)
    found = modules[module]
    if config.family == "t5" and module == "ffn.up" and config.activation not in GATED:
        found = found.removesuffix("_1")  # wi where there is no gate, wi_1 beside the gate's wi_0
    return tuple(f"{prefix}{n}.{kind}" for n in ((found,) if isinstance(found, str) else found))


def _join(parts: list[Tensor], name: str, weights: Weights, config: ModelConfig) -> Tensor:
    """Ours from theirs."""
    if ".experts." in name:
        return torch.stack(parts)
    if _is_transposed(name, weights):
        parts = [p.T for p in parts]
    if name.endswith(".convolution"):  # theirs is torch's Conv1d, one channel to one
        parts = [p.squeeze(1) for p in parts]
    if name.endswith(weights.part_by_part):
        groups, rows = _rows(name, config)
        parts = list(parts[0].split([groups * r for r in rows]))
    if len(parts) == 1:
        return parts[0]
    return torch.cat([p.unflatten(0, (_rows(name, config)[0], -1)) for p in parts], dim=1).flatten(0, 1)


def _split(tensor: Tensor, name: str, count: int, weights: Weights, config: ModelConfig) -> list[Tensor]:
    """Theirs, `count` of them, from ours."""
    if ".experts." in name:
        return list(tensor.unbind())
    part_by_part = name.endswith(weights.part_by_part)
    parts = [tensor]
    if count > 1 or part_by_part:
        groups, rows = _rows(name, config)
        parts = [p.flatten(0, 1) for p in tensor.unflatten(0, (groups, -1)).split(rows, dim=1)]
    if part_by_part:
        parts = [torch.cat(parts)]
    if name.endswith(".convolution"):
        parts = [p.unsqueeze(1) for p in parts]
    return [p.T.contiguous() if _is_transposed(name, weights) else p for p in parts]


def _rows(name: str, config: ModelConfig) -> tuple[int, tuple[int, ...]]:
    """(number of groups, how many rows of each part one group has) of a weight that is made of parts."""
    if ".projection." in name or ".convolution" in name:
        groups, heads, state = (
            config.mamba_num_groups,
            config.mamba_num_heads // config.mamba_num_groups,
            config.mamba_state_dim,
        )
        mixed = (heads * config.mamba_head_dim, state, state)
        return groups, (mixed[0], *mixed, heads) if ".projection." in name else mixed
    channels = config.kv_channels
    queries = config.num_attention_heads // config.num_query_groups * channels
    return config.num_query_groups, (
        (channels, channels) if ".key_value." in name else (queries, channels, channels)
    )


def _is_transposed(name: str, weights: Weights) -> bool:
    return name.endswith(tuple(f".{m}.weight" for m in weights.transposed))


def _is_padded(name: str) -> bool:
    return name in ("embedding.weight", "output.weight", "head.bias")
