"""Hugging Face's and Megatron-LM's names of our settings and weights, by architecture.

train/checkpoint reads and writes checkpoints by these tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from ...core.config import UserError, shown
from ...core.parsing import FETCH, Range, problem
from .config import ResolvedModelConfig, expert_layers
from .mamba import WIDTH
from .positions import RopeScaling
from .t5 import DISTANCE_BUCKETS, MAX_DISTANCE

BlockNames = Mapping[str, str | tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class WeightNames:
    """Our modules -> Hugging Face's, or several of theirs whose rows ours interleaves by group.

    A table may also name a parameter, with the full name of theirs; `{expert}` in it means one for each
    expert, which ours stacks.
    """

    top: Mapping[str, str]  # modules outside the blocks
    stacks: Mapping[str, tuple[str, BlockNames]]  # our list of blocks -> (theirs, the modules of a block)
    base: str = ""  # a prefix of the names that some checkpoints have and others do not
    transposed: tuple[str, ...] = ()  # our modules whose matrix theirs stores as (in, out), as GPT-2 does
    # weights that theirs stores as all queries, all keys, all values; ours goes group by group
    part_by_part: tuple[str, ...] = ()
    # our module -> a suffix of its name, only where the feed-forward layer is gated
    gated_suffix: Mapping[str, str] = dataclasses.field(default_factory=dict)


LLAMA_BLOCK: BlockNames = {
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
LLAMA = WeightNames(
    {"embedding": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"},
    {"layers": ("model.layers", LLAMA_BLOCK)},
    "model.",
)


def _experts(mixture: str, gate: str, up: str, down: str) -> dict[str, str]:
    """The names of a mixture of experts, in place of those of Llama's feed-forward layer."""
    names = {"gate": gate, "up": up, "down": down}
    return {
        "ffn.router": f"{mixture}.gate",
        **{
            f"ffn.experts.{ours}": f"{mixture}.experts.{{expert}}.{theirs}.weight"
            for ours, theirs in names.items()
        },
    }


MIXTRAL_BLOCK: BlockNames = {**LLAMA_BLOCK, **_experts("block_sparse_moe", "w1", "w3", "w2")}
QWEN_MOE_BLOCK: BlockNames = {
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
MAMBA = WeightNames(
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
BERT_BLOCK: BlockNames = {
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


def _t5_block(*, cross: bool) -> BlockNames:
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
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "activation": "hidden_act",
    "init_method_std": "initializer_range",
    "attention_dropout": "attention_dropout",
}
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
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "layernorm_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
    "mamba_num_heads": "num_heads",
    "mamba_head_dim": "head_dim",
    "mamba_num_groups": "n_groups",
    "mamba_state_dim": "state_size",
    "init_method_std": "initializer_range",
}
GPT2_KEYS = {
    "num_layers": "n_layer",
    "hidden_size": "n_embd",
    "ffn_hidden_size": "n_inner",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "layernorm_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
    "activation": "activation_function",
    "init_method_std": "initializer_range",
    "hidden_dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
}
BERT_KEYS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "layer_norm_eps",
    "vocab_size": "vocab_size",
    "activation": "hidden_act",
    "init_method_std": "initializer_range",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
T5_KEYS = {
    "num_layers": "num_layers",
    "decoder_num_layers": "num_decoder_layers",
    "hidden_size": "d_model",
    "ffn_hidden_size": "d_ff",
    "num_attention_heads": "num_heads",
    "kv_channels": "d_kv",
    "layernorm_epsilon": "layer_norm_epsilon",
    "vocab_size": "vocab_size",
    "activation": "feed_forward_proj",
    "hidden_dropout": "dropout_rate",
}
# Hugging Face's activations -> ours. Where two are the same to us, export writes the first.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "squared_relu",
}
GATING = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
T5_ACTIVATIONS = {"relu": "relu", "gelu_new": "gelu_tanh", "gated-gelu": "geglu", "gated-silu": "swiglu"}


# What the keys of a config.json must be that the functions `read` of the architectures look at. (Those of
# `Architecture.keys` must be what our setting must be.) None where transformers takes null.
OTHER_KEYS: dict[str, Any] = {
    "model_type": str,
    "architectures": list[str] | None,
    "tie_word_embeddings": bool,
    "scale_decoder_outputs": bool,
    "multi_query": bool,
    "rope_theta": float,
    "rope_scaling": dict[str, Any] | None,
    "rope_parameters": dict[str, Any] | None,
    "partial_rotary_factor": float,
    "rotary_pct": float,
    "rotary_emb_base": float,
    "sliding_window": int | None,
    "use_sliding_window": bool,
    "max_window_layers": int,
    "num_local_experts": int,
    "mlp_only_layers": list[int] | None,
    "decoder_sparse_step": Annotated[int, Range(1)],
    "norm_topk_prob": bool,
    "expand": float,
    "time_step_limit": list[Any],
}
MOST_LAYERS = 100_000  # of a config.json, whose layers are counted before any file of weights is looked at


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A `model_type` of Hugging Face's config.json: its names of our settings and weights, and its defaults.

    read: (config.json, its path for messages) -> further settings of ours; raises UserError where our models
    differ. write: the reverse.
    """

    weights: WeightNames
    loaded_by: str  # the class of transformers
    keys: Mapping[str, str]  # our setting -> key of config.json
    activations: Mapping[str, str]  # Hugging Face's -> ours
    always: Mapping[str, Any]  # settings of ours that are the same for all of its models
    absent: Mapping[str, Any]  # the values of keys that config.json does not have
    requires: Mapping[str, Any]  # key -> the only value that our models implement
    read: Callable[[Mapping[str, Any], str], dict[str, Any]]
    write: Callable[[ResolvedModelConfig], dict[str, Any]] = lambda config: {}
    tied: bool = False  # whether embedding and output layer share weights where config.json does not say
    without: tuple[str, ...] = ()  # settings of ours that its models do not have


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
GPT2 = WeightNames(
    GPT2_TOP,
    {"layers": ("transformer.h", GPT2_BLOCK)},
    "transformer.",
    GPT2_MATRICES,
    ("mixer.qkv.weight", "mixer.qkv.bias"),
)
BIGCODE = WeightNames(GPT2_TOP, {"layers": ("transformer.h", GPT2_BLOCK)}, "transformer.")
BERT = WeightNames(BERT_TOP, {"layers": ("bert.encoder.layer", BERT_BLOCK)}, "bert.")


def read_tied(raw: Mapping, *, default: bool) -> dict:
    return {"untie_embeddings_and_output_weights": not raw.get("tie_word_embeddings", default)}


def _read_gpt2(raw: Mapping, place: str) -> dict:
    return read_tied(raw, default=True)


def _read_bigcode(raw: Mapping, place: str) -> dict:
    return {
        **read_tied(raw, default=True),
        "num_query_groups": 1 if raw.get("multi_query", True) else raw["n_head"],
    }


def _read_bert(raw: Mapping, place: str) -> dict:
    return {"bert_binary_head": raw.get("architectures") != ["BertForMaskedLM"]}


def _read_t5(raw: Mapping, place: str) -> dict:
    # transformers 5 tells by another key whether the output layer was tied.
    tied = raw.get("tie_word_embeddings", True) and raw.get("scale_decoder_outputs", True)
    return {"untie_embeddings_and_output_weights": not tied}


def _read_mamba(raw: Mapping, place: str) -> dict:
    return {**read_tied(raw, default=False), **_mamba_in(raw, place)}


def _read_llama(
    raw: Mapping, place: str, *, window: Callable[[Mapping, str], int | None] | None = None
) -> dict:
    found = {**read_tied(raw, default=False), **read_rope(raw, place)}
    return {**found, "window_size": window(raw, place)} if window is not None else found


def _read_qwen(raw: Mapping, place: str) -> dict:
    return _read_llama(raw, place, window=_qwen_window)


def _read_qwen_moe(raw: Mapping, place: str) -> dict:
    return {**_read_qwen(raw, place), **_experts_in(raw)}


def _read_mistral(raw: Mapping, place: str) -> dict:
    return _read_llama(raw, place, window=lambda raw, place: raw.get("sliding_window", 4096))


def _read_mixtral(raw: Mapping, place: str) -> dict:
    return _read_llama(raw, place, window=lambda raw, place: raw.get("sliding_window"))


def _qwen_window(raw: Mapping, place: str) -> int | None:
    if not raw.get("use_sliding_window"):
        return None
    if raw.get("max_window_layers", 28) > 0:
        raise UserError(
            f"{place}: max_window_layers is {raw.get('max_window_layers', 28)}: some layers have a window and"
            " others do not; only one window for all can be loaded"
        )
    return raw.get("sliding_window")


def _mamba_in(raw: Mapping, place: str) -> dict:
    inner = raw["num_heads"] * raw["head_dim"]
    if raw.get("expand", 2) * raw["hidden_size"] != inner:
        raise UserError(
            f"{place}: expand is {raw.get('expand', 2)}, which times hidden_size is not the {inner} of"
            " num_heads x head_dim; fetch the file again"
        )
    limit = raw.get("time_step_limit", [0.0, float("inf")])
    if limit not in ([0, float("inf")], [0, {"__float__": "Infinity"}]):
        raise UserError(
            f"{place}: time_step_limit is {shown(limit)}; only models whose time steps have no limit can be"
            " loaded"
        )
    # No layer uses attention heads, and positions are unlimited.
    return {
        "hybrid_override_pattern": "M" * raw["num_hidden_layers"],
        "num_attention_heads": 1,
        "max_position_embeddings": 1 << 20,
    }


def _experts_in(raw: Mapping) -> dict:
    dense, step = set(raw.get("mlp_only_layers") or ()), raw.get("decoder_sparse_step", 1)
    sparse = [layer not in dense and (layer + 1) % step == 0 for layer in range(raw["num_hidden_layers"])]
    return {
        "moe_layer_freq": moe_layer_freq(sparse),
        "moe_router_pre_softmax": not raw.get("norm_topk_prob", False),
    }


def moe_layer_freq(sparse: list[bool]) -> str:
    """The setting of that name, in one canonical spelling. sparse: whether each layer has experts."""
    return "1" if all(sparse) else f"[{','.join(map(str, map(int, sparse)))}]"


def read_rope(raw: Mapping, place: str) -> dict:
    """rotary_base, rope_scaling and, for dynamic scaling, max_position_embeddings of a config.json."""
    # rope_scaling is transformers 4's key, rope_parameters transformers 5's.
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    if (part := rope.pop("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1:
        raise UserError(
            f"{place}: partial_rotary_factor is {shown(part)}; only models that rotate all channels of a head"
            " can be loaded"
        )
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    base = rope.pop("rope_theta", raw.get("rope_theta", 10000.0))
    if wrong := problem(rope, RopeScaling):
        raise UserError(f"{place}: rope_scaling (or rope_parameters) {wrong}; {FETCH}")
    if rope["rope_type"] in ("llama3", "yarn", "dynamic"):
        if "max_position_embeddings" not in raw:
            raise UserError(
                f"{place}: has no max_position_embeddings, which rope_type {rope['rope_type']} needs; {FETCH}"
            )
        rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    found = {"rotary_base": base, "rope_scaling": None if rope["rope_type"] == "default" else rope}
    # Theirs is the original length; the model is for longer sequences.
    if rope["rope_type"] == "dynamic":
        if "factor" not in rope:
            raise UserError(f"{place}: its rope_scaling (or rope_parameters) has no factor; {FETCH}")
        found["max_position_embeddings"] = int(rope["original_max_position_embeddings"] * rope["factor"])
    return found


def _write_gpt2(config: ResolvedModelConfig) -> dict:
    return {"embd_pdrop": config.hidden_dropout}


def _write_bigcode(config: ResolvedModelConfig) -> dict:
    return {"embd_pdrop": config.hidden_dropout, "multi_query": config.num_query_groups == 1}


def _write_bert(config: ResolvedModelConfig) -> dict:
    return {} if config.bert_binary_head else {"architectures": ["BertForMaskedLM"]}


def write_rope(config: ResolvedModelConfig) -> dict:
    """The keys of rotary positions, both transformers 5's and transformers 4's."""
    if config.position_embedding_type != "rope":
        return {}
    scaling = config.rope_scaling or {"rope_type": "default"}
    written: dict = {"rope_parameters": {**scaling, "rope_theta": config.rotary_base}}
    if scaling["rope_type"] == "dynamic":
        written["max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return {
        **written,
        "rope_theta": config.rotary_base,
        "rope_scaling": config.rope_scaling and dict(config.rope_scaling),
    }


def _write_mistral(config: ResolvedModelConfig) -> dict:
    return {**write_rope(config), "sliding_window": config.window_size}


def _write_qwen_moe(config: ResolvedModelConfig) -> dict:
    sparse = expert_layers(config.moe_layer_freq, config.num_layers)
    return {
        **write_rope(config),
        "mlp_only_layers": [layer for layer, is_sparse in enumerate(sparse) if not is_sparse],
        "decoder_sparse_step": 1,
        "norm_topk_prob": not config.moe_router_pre_softmax,
    }


def _write_mamba(config: ResolvedModelConfig) -> dict:
    expand = config.mamba_heads * config.mamba_head_dim / config.hidden_size
    return {
        **write_rope(config),
        "expand": int(expand) if expand.is_integer() else expand,
        "hidden_act": "silu",
    }


# Settings of attention and feed-forward layers, which a pure Mamba model does not have.
WITHOUT_ATTENTION = (
    "num_attention_heads", "num_query_groups", "kv_channels", "ffn_hidden_size", "activation",
    "add_bias_linear", "add_qkv_bias", "qk_layernorm", "window_size", "max_position_embeddings",
)  # fmt: skip


def _llama(loaded_by: str, **absent) -> Architecture:
    return Architecture(
        LLAMA,
        loaded_by,
        LLAMA_KEYS,
        GATING,
        LLAMA_SHAPE,
        {**LLAMA_ABSENT, **absent},
        LLAMA_REQUIRES,
        _read_llama,
        write_rope,
    )


def _qwen(loaded_by: str, always: Mapping, **absent) -> Architecture:
    return dataclasses.replace(_llama(loaded_by, **absent), always={**LLAMA_SHAPE, **always}, read=_read_qwen)


def _qwen_moe(loaded_by: str, always: Mapping, **absent) -> Architecture:
    return dataclasses.replace(_qwen(loaded_by, always, **absent), read=_read_qwen_moe, write=_write_qwen_moe)


def _mixture(architecture: Architecture, block: Mapping, keys: Mapping, **absent) -> Architecture:
    """An architecture of Llama's kind with experts."""
    weights = dataclasses.replace(LLAMA, stacks={"layers": ("model.layers", block)})
    return dataclasses.replace(
        architecture, weights=weights, keys=keys, absent={**architecture.absent, **absent}
    )


GPT_ARCHITECTURES = {
    "gpt2": Architecture(
        GPT2, "GPT2LMHeadModel", GPT2_KEYS, ACTIVATIONS, {},
        {**GPT2_ABSENT, "activation_function": "gelu_new"}, GPT2_REQUIRES, _read_gpt2, _write_gpt2,
    ),
    "gpt_bigcode": Architecture(
        BIGCODE, "GPTBigCodeForCausalLM", GPT2_KEYS, ACTIVATIONS, {},
        {**GPT2_ABSENT, "activation_function": "gelu_pytorch_tanh"}, GPT2_REQUIRES,
        _read_bigcode, _write_bigcode,
    ),
    "llama": _llama("LlamaForCausalLM"),
    "mistral": dataclasses.replace(
        _llama("MistralForCausalLM", num_key_value_heads=8), read=_read_mistral, write=_write_mistral
    ),
    "qwen2": _qwen("Qwen2ForCausalLM", {"add_qkv_bias": True}),
    "qwen3": _qwen("Qwen3ForCausalLM", {"qk_layernorm": True}, head_dim=128),
    "mixtral": dataclasses.replace(
        _mixture(
            _llama("MixtralForCausalLM", num_key_value_heads=8, rms_norm_eps=1e-5), MIXTRAL_BLOCK,
            MIXTRAL_KEYS, num_local_experts=8, num_experts_per_tok=2,
        ),
        read=_read_mixtral, write=_write_mistral,
    ),
    "qwen2_moe": _mixture(
        _qwen_moe("Qwen2MoeForCausalLM", {"add_qkv_bias": True, "moe_shared_expert_gate": True}),
        QWEN_MOE_BLOCK,
        {**QWEN_MOE_KEYS, "moe_shared_expert_intermediate_size": "shared_expert_intermediate_size"},
        num_experts_per_tok=4,
    ),
    "qwen3_moe": _mixture(
        _qwen_moe("Qwen3MoeForCausalLM", {"qk_layernorm": True}), QWEN_MOE_BLOCK, QWEN_MOE_KEYS,
        num_experts_per_tok=8,
    ),
    "mamba2": Architecture(
        MAMBA, "Mamba2ForCausalLM", MAMBA_KEYS, {},
        {"position_embedding_type": "none", "normalization": "RMSNorm", "add_bias_linear": False},
        {"layer_norm_epsilon": 1e-5, "n_groups": 8, "state_size": 128, "initializer_range": 0.1},
        {"use_bias": False, "use_conv_bias": True, "conv_kernel": WIDTH, "rms_norm": True,
         "hidden_act": "silu"},
        _read_mamba, _write_mamba, without=WITHOUT_ATTENTION,
    ),
}  # fmt: skip
BERT_ARCHITECTURES = {
    "bert": Architecture(
        BERT, "BertForPreTraining", BERT_KEYS, ACTIVATIONS, {"family": "bert", "post_norm": True},
        {
            "layer_norm_eps": 1e-12, "hidden_act": "gelu", "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        },
        {"position_embedding_type": "absolute", "type_vocab_size": 2, "is_decoder": False},
        _read_bert, _write_bert,
    ),
}  # fmt: skip
T5_ARCHITECTURES = {
    "t5": Architecture(
        WeightNames(T5_TOP, T5_STACKS, gated_suffix={"ffn.up": "_1"}), "T5ForConditionalGeneration", T5_KEYS,
        T5_ACTIVATIONS, T5_SHAPE,
        {"layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "dropout_rate": 0.1},
        {"relative_attention_num_buckets": DISTANCE_BUCKETS, "relative_attention_max_distance": MAX_DISTANCE},
        _read_t5, without=("max_position_embeddings",),  # its positions are distances
    ),
}  # fmt: skip


def gpt_architecture(config: ResolvedModelConfig) -> str:
    """The architecture nearest to a model of family gpt; raises UserError for a hybrid."""
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


@dataclasses.dataclass(frozen=True)
class MegatronNames:
    """Megatron-LM's names of our modules: outside the blocks, and in a block."""

    top: Mapping[str, str]
    layer: Mapping[str, str]


GPT_LAYER = {
    "mixer_norm": "input_layernorm",
    "mixer.qkv": "self_attention.linear_qkv",
    "mixer.out": "self_attention.linear_proj",
    "mixer.query_norm": "self_attention.q_layernorm",
    "mixer.key_norm": "self_attention.k_layernorm",
    "ffn_norm": "pre_mlp_layernorm",
    "ffn.up": "mlp.linear_fc1",
    "ffn.down": "mlp.linear_fc2",
}
GPT_TOP = {
    "embedding": "embedding.word_embeddings",
    "positions": "embedding.position_embeddings",
    "norm": "decoder.final_layernorm",
    "output": "output_layer",
}
MEGATRON_GPT = MegatronNames(GPT_TOP, GPT_LAYER)
