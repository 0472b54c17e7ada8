"""Hugging Face's and Megatron-LM's names of our settings and weights, by architecture.

train/checkpoint reads and writes checkpoints by these tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from ...core.config import UserError, shown
from ...core.parsing import FETCH, Range, problem
from .config import MOST_SIZE, ResolvedModelConfig, expert_layers
from .mamba import WIDTH
from .positions import RopeScaling

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
    # tensors that some checkpoints have beside the weight that they must equal
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    transposed: tuple[str, ...] = ()  # our modules whose matrix theirs stores as (in, out), as GPT-2 does
    # weights that theirs stores as all queries, all keys, all values; ours goes group by group
    part_by_part: tuple[str, ...] = ()
    # our modules that are halves of one of theirs, in their order
    halves: tuple[str, ...] = ()
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
    copies={"lm_head.weight": "model.embed_tokens.weight"},
)


def experts(mixture: str, gate: str, up: str, down: str) -> dict[str, str]:
    """The names of a mixture of experts, in place of those of Llama's feed-forward layer."""
    names = {"gate": gate, "up": up, "down": down}
    return {
        "ffn.router": f"{mixture}.gate",
        **{
            f"ffn.experts.{ours}": f"{mixture}.experts.{{expert}}.{theirs}.weight"
            for ours, theirs in names.items()
        },
    }


MIXTRAL_BLOCK: BlockNames = {**LLAMA_BLOCK, **experts("block_sparse_moe", "w1", "w3", "w2")}
QWEN_MOE_BLOCK: BlockNames = {
    **LLAMA_BLOCK,
    **experts("mlp", "gate_proj", "up_proj", "down_proj"),
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
    copies={"lm_head.weight": "backbone.embeddings.weight"},
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
T5_READS = frozenset({"scale_decoder_outputs", "dense_act_fn", "is_gated_act"})
T5_COPIES = {
    f"{place}.weight": "shared.weight"
    for place in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
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
    "relative_attention_num_buckets": "relative_attention_num_buckets",
    "relative_attention_max_distance": "relative_attention_max_distance",
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
    "attention_bias": bool,
    "mlp_bias": bool,
    "qkv_bias": bool,
    "multi_query": bool,
    "rope_theta": float,
    "rope_scaling": dict[str, Any] | None,
    "rope_parameters": dict[str, Any] | None,
    "partial_rotary_factor": float,
    "rotary_pct": float,
    "rotary_emb_base": float,
    "new_decoder_architecture": bool,
    "num_ln_in_parallel_attn": int | None,
    "parallel_attn": bool,
    "num_kv_heads": int | None,
    "layer_types": list[str] | None,
    "query_pre_attn_scalar": Annotated[int, Range(1)],
    "sliding_window_pattern": Annotated[int, Range(1)],
    "rope_local_base_freq": float,
    "attn_logit_softcapping": float | None,
    "final_logit_softcapping": float | None,
    "use_bidirectional_attention": bool | None,
    "hidden_activation": str | None,
    "original_max_position_embeddings": Annotated[int, Range(1)],
    "attention_multiplier": float,
    "sliding_window": Annotated[int | None, Range(0, MOST_SIZE)],
    "use_sliding_window": bool,
    "max_window_layers": int,
    "num_local_experts": int,
    "mlp_only_layers": list[int] | None,
    "decoder_sparse_step": Annotated[int, Range(1)],
    "norm_topk_prob": bool,
    "q_lora_rank": Annotated[int | None, Range(1, MOST_SIZE)],
    "n_shared_experts": Annotated[int, Range(1, MOST_SIZE)],
    "first_k_dense_replace": Annotated[int, Range(0, MOST_SIZE)],
    "routed_scaling_factor": float,
    "n_group": Annotated[int | None, Range(1, MOST_SIZE)],
    "topk_group": Annotated[int | None, Range(1, MOST_SIZE)],
    "expand": float,
    "seq_length": Annotated[int, Range(1, MOST_SIZE)],
    "time_step_limit": list[Any],
}


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
    without: tuple[str, ...] = ()  # settings of ours that its models do not have
    reads: frozenset[str] = frozenset()  # the keys that `read` looks at, beside those of ALWAYS_READ
    unused: Mapping[str, str] = dataclasses.field(default_factory=dict)  # as UNUSED_KEYS, of its models only
    # other names of keys, which transformers takes too -> the names in these tables
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def knows(self, key: str) -> bool:
        """Whether a key of a config.json is used, or cannot change what a model computes."""
        return (
            key in ALWAYS_READ
            or key in UNUSED_KEYS
            or key in self.reads
            or key in self.unused
            or key in self.requires
            or key in ("pruned_heads", "tie_encoder_decoder")
            or key in self.keys.values()
        )


ALWAYS_READ = ("model_type", "architectures", "quantization_config", "tie_word_embeddings")


def because(reasons: Mapping[str, str]) -> dict[str, str]:
    """Key -> reason, from reason -> keys in one text."""
    return {key: reason for reason, keys in reasons.items() for key in keys.split()}


# Keys of a config.json that cannot change what a model computes, each with the reason. What transformers
# writes beside these must be used by an architecture, or is refused by name.
UNUSED_KEYS = because(
    {
        "where the file comes from": "transformers_version _name_or_path name_or_path _commit_hash",
        "code, which is never run": "auto_map custom_pipelines",
        "the files of weights say their dtype, and the run says in which it computes": (
            "dtype torch_dtype use_bfloat16 torchscript"
        ),
        "which of equal implementations transformers runs, and what it returns": (
            "use_cache output_attentions output_hidden_states return_dict chunk_size_feed_forward"
            " attn_implementation _attn_implementation _attn_implementation_autoset"
            " experts_implementation gradient_checkpointing tf_legacy_loss is_encoder_decoder"
            " output_router_logits"
        ),
        "ids of tokens, which the tokenizer has": (
            "bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id"
        ),
        "of tasks, whose heads cannot be loaded": (
            "id2label label2id num_labels problem_type finetuning_task task_specific_params"
            " classifier_dropout"
        ),
        "how text is generated, which the commands say": (
            "max_length max_new_tokens min_length min_new_tokens early_stopping max_time do_sample num_beams"
            " num_beam_groups diversity_penalty penalty_alpha temperature top_k top_p min_p typical_p"
            " epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty"
            " no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids"
            " renormalize_logits forced_bos_token_id forced_eos_token_id remove_invalid_values"
            " exponential_decay_length_penalty suppress_tokens begin_suppress_tokens num_return_sequences"
            " output_scores output_logits return_dict_in_generate prefix"
        ),
        "of training, where mt has a setting of its own": (
            "router_aux_loss_coef router_jitter_noise embd_pdrop initializer_factor"
        ),
    }
)


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
GPT2_COPIES = {"lm_head.weight": "transformer.wte.weight"}
GPT2_MATRICES = ("mixer.qkv", "mixer.out", "ffn.up", "ffn.down")
GPT2 = WeightNames(
    GPT2_TOP,
    {"layers": ("transformer.h", GPT2_BLOCK)},
    "transformer.",
    GPT2_COPIES,
    GPT2_MATRICES,
    ("mixer.qkv.weight", "mixer.qkv.bias"),
)
BIGCODE = WeightNames(GPT2_TOP, {"layers": ("transformer.h", GPT2_BLOCK)}, "transformer.", GPT2_COPIES)
BERT = WeightNames(
    BERT_TOP,
    {"layers": ("bert.encoder.layer", BERT_BLOCK)},
    "bert.",
    {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)


WINDOW_KEYS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
EXPERT_KEYS = frozenset({"mlp_only_layers", "decoder_sparse_step", "norm_topk_prob"})
GPT2_UNUSED = because(
    {
        "of tasks, whose heads cannot be loaded": (
            "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout"
        ),
        "a second n_positions, which transformers does not read": "n_ctx",
        "which of equal implementations transformers runs": (
            "reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32"
            " inference_runner validate_runner_input pre_allocate_kv_cache max_sequence_length"
            " max_batch_size"
        ),
        "of GPT-BigCode, follows from multi_query": "num_key_value_heads",
    }
)
MAMBA_UNUSED = because(
    {
        "initial values of weights": ("time_step_rank time_step_min time_step_max time_step_floor"),
        "which of equal implementations transformers runs": "chunk_size residual_in_fp32",
    }
)
BERT_UNUSED = because(
    {
        "of the first TensorFlow files, read by nothing": (
            "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers"
            " pooler_size_per_head pooler_type"
        )
    }
)
T5_UNUSED = because(
    {
        "a number of positions, which T5 does not have": "n_positions",
        "of the first files, read by nothing": "output_past",
        "initial values of weights": "initializer_range",
    }
)
ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"})


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
    gated, _, name = ("-" + raw["feed_forward_proj"]).rpartition("-")
    follows = {"is_gated_act": bool(gated), "dense_act_fn": "gelu_new" if gated and name == "gelu" else name}
    for key, value in follows.items():
        if raw.get(key, value) != value:
            raise UserError(
                f"{place}: {key} is {shown(raw[key])}, and feed_forward_proj says {value!r}; {FETCH}"
            )
    return {"untie_embeddings_and_output_weights": not tied}


def _read_mt5(raw: Mapping, place: str) -> dict:
    """As T5 v1.1, whatever tie_word_embeddings says: an output layer of its own, without scaled outputs."""
    return {**_read_t5(raw, place), "untie_embeddings_and_output_weights": True}


def _read_mamba(raw: Mapping, place: str) -> dict:
    return {**read_tied(raw, default=False), **_mamba_in(raw, place)}


def _read_llama(raw: Mapping, place: str, *, windows: Callable[[Mapping, str], dict] | None = None) -> dict:
    found = {**read_tied(raw, default=False), **read_rope(raw, place), **read_biases(raw, place)}
    return {**found, **windows(raw, place)} if windows is not None else found


def read_biases(raw: Mapping, place: str) -> dict:
    attention, mlp = raw.get("attention_bias", False), raw.get("mlp_bias", False)
    if mlp and not attention:
        raise UserError(
            f"{place}: mlp_bias is True and attention_bias is not; only biases in attention, or in all"
            " layers, can be loaded"
        )
    return {"add_bias_linear": mlp, "add_attention_bias": attention and not mlp}


def write_biases(config: ResolvedModelConfig) -> dict:
    return {
        "attention_bias": config.add_bias_linear or config.add_attention_bias,
        "mlp_bias": config.add_bias_linear,
    }


def _read_qwen(raw: Mapping, place: str) -> dict:
    return _read_llama(raw, place, windows=_qwen_windows)


def _read_qwen2_moe(raw: Mapping, place: str) -> dict:
    found = {**_read_llama(raw, place, windows=_qwen2_moe_windows), **_experts_in(raw)}
    return {**found, "add_qkv_bias": raw.get("qkv_bias", True)}


def _read_qwen3_moe(raw: Mapping, place: str) -> dict:
    used = raw.get("use_sliding_window", False)
    window = {"window_size": raw.get("sliding_window", 4096) if used else None}
    return {**_read_llama(raw, place), **window, **_experts_in(raw)}


def _read_mistral(raw: Mapping, place: str) -> dict:
    return {**_read_llama(raw, place), "window_size": raw.get("sliding_window", 4096)}


def _read_mixtral(raw: Mapping, place: str) -> dict:
    return {**_read_llama({"rope_theta": 1e6, **raw}, place), "window_size": raw.get("sliding_window")}


def _qwen_windows(raw: Mapping, place: str) -> dict:
    count, first = raw["num_hidden_layers"], raw.get("max_window_layers", 28)
    if not raw.get("use_sliding_window"):
        return {}
    return read_windows(raw, place, [layer >= first for layer in range(count)])


def _qwen2_moe_windows(raw: Mapping, place: str) -> dict:
    """Another rule than Qwen2's: every second layer of those before max_window_layers has the window."""
    count, first = raw["num_hidden_layers"], raw.get("max_window_layers", 28)
    if not raw.get("use_sliding_window"):
        return {}
    return read_windows(raw, place, [layer % 2 == 0 and layer < first for layer in range(count)])


LAYER_TYPES = ("full_attention", "sliding_attention")


def read_windows(raw: Mapping, place: str, rule: list[bool]) -> dict:
    """window_size and window_attn_skip_freq. rule: which layers have it if layer_types does not say."""
    kinds = raw.get("layer_types")
    if kinds is not None:
        wrong = next((kind for kind in kinds if kind not in LAYER_TYPES), None)
        if wrong is not None or len(kinds) != len(rule):
            what = f"has {len(kinds)} entries" if wrong is None else f"has {shown(wrong)}"
            raise UserError(
                f"{place}: layer_types {what}; only one of {' or '.join(LAYER_TYPES)} for each of"
                f" {len(rule)} layers can be loaded"
            )
        rule = [kind == "sliding_attention" for kind in kinds]
    window = raw.get("sliding_window", 4096)
    if window is None or not any(rule):
        return {}
    return {"window_size": window, "window_attn_skip_freq": window_attn_skip_freq(rule)}


def window_attn_skip_freq(windowed: list[bool]) -> str | None:
    """The setting of that name, in one canonical spelling. windowed: whether each layer has the window."""
    return None if all(windowed) else f"[{','.join(map(str, map(int, windowed)))}]"


def write_windows(config: ResolvedModelConfig) -> dict:
    return {
        "sliding_window": config.window_size,
        "layer_types": [LAYER_TYPES[windowed] for windowed in config.windowed],
    }


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


def read_rope(raw: Mapping, place: str, *, partial: bool = False) -> dict:
    """rotary_base, rotary_percent, rope_scaling and, for dynamic scaling, max_position_embeddings.

    partial: whether models of this type may rotate a part of a head's channels.
    """
    # rope_scaling is transformers 4's key, rope_parameters transformers 5's.
    old, new = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    if differing := [key for key in old if key in new and old[key] != new[key]]:
        raise UserError(
            f"{place}: {differing[0]} is {shown(old[differing[0]])} in rope_scaling and"
            f" {shown(new[differing[0]])} in rope_parameters; {FETCH}"
        )
    rope = {**old, **new}
    percent = rope.pop("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    base = rope.pop("rope_theta", raw.get("rope_theta", 10000.0))
    for key, value in (("partial_rotary_factor", percent), ("rope_theta", base)):
        if wrong := problem(value, float):
            raise UserError(f"{place}: {key} {wrong}; {FETCH}")
    if percent != 1 and not partial:
        raise UserError(
            f"{place}: partial_rotary_factor is {shown(percent)}; only models that rotate all channels of a"
            " head can be loaded"
        )
    if wrong := problem(rope, RopeScaling):
        raise UserError(f"{place}: rope_scaling (or rope_parameters) {wrong}; {FETCH}")
    if rope["rope_type"] == "default" and len(rope) > 1:
        extra = next(key for key in rope if key != "rope_type")
        raise UserError(
            f"{place}: rope_scaling (or rope_parameters) has {extra}, which rope_type default does not know;"
            " name the rope_type, or remove it"
        )
    if rope["rope_type"] in ("llama3", "yarn", "dynamic", "longrope"):
        if "max_position_embeddings" not in raw:
            raise UserError(
                f"{place}: has no max_position_embeddings, which rope_type {rope['rope_type']} needs; {FETCH}"
            )
        rope.setdefault("original_max_position_embeddings", raw["max_position_embeddings"])
    if rope["rope_type"] == "longrope" and rope.get("factor") is None:
        rope["factor"] = raw["max_position_embeddings"] / rope["original_max_position_embeddings"]
    found = {
        "rotary_base": base,
        "rotary_percent": percent,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
    }
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
    if config.rotary_percent != 1:
        written["rope_parameters"]["partial_rotary_factor"] = config.rotary_percent
        written["partial_rotary_factor"] = config.rotary_percent
    if scaling["rope_type"] == "dynamic":
        written["max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return {
        **written,
        "rope_theta": config.rotary_base,
        "rope_scaling": config.rope_scaling and dict(config.rope_scaling),
    }


def _write_mistral(config: ResolvedModelConfig) -> dict:
    return {**write_rope(config), "sliding_window": config.window_size}


def _write_llama(config: ResolvedModelConfig) -> dict:
    return {**write_rope(config), **write_biases(config)}


def _write_qwen(config: ResolvedModelConfig) -> dict:
    """transformers 4 takes max_window_layers for the first layer that has the window."""
    written = {**write_rope(config), "use_sliding_window": config.window_size is not None}
    if config.window_size is not None:
        windowed = config.windowed
        written |= {**write_windows(config), "max_window_layers": windowed.index(True)}
    return written


def _write_qwen3(config: ResolvedModelConfig) -> dict:
    return {**_write_qwen(config), "attention_bias": config.add_attention_bias}


def _write_qwen2_moe(config: ResolvedModelConfig) -> dict:
    return {**_write_qwen(config), **_write_experts(config), "qkv_bias": config.add_qkv_bias}


def _write_qwen3_moe(config: ResolvedModelConfig) -> dict:
    return {
        **write_rope(config),
        **_write_experts(config),
        "use_sliding_window": config.window_size is not None,
        "sliding_window": config.window_size,
        "attention_bias": config.add_attention_bias,
    }


def _write_experts(config: ResolvedModelConfig) -> dict:
    sparse = expert_layers(config.moe_layer_freq, config.num_layers)
    return {
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
        {"pretraining_tp": 1},
        _read_llama,
        _write_llama,
        reads=ROPE_KEYS | {"attention_bias", "mlp_bias"},
    )


def _qwen(loaded_by: str, always: Mapping, **absent) -> Architecture:
    return dataclasses.replace(
        _llama(loaded_by, **absent),
        always={**LLAMA_SHAPE, **always},
        requires=LLAMA_REQUIRES,
        read=_read_qwen,
        write=_write_qwen,
        reads=ROPE_KEYS | WINDOW_KEYS,
    )


def _with_biases(architecture: Architecture) -> Architecture:
    """The same with attention_bias, which Qwen3's models have."""
    requires = {key: value for key, value in architecture.requires.items() if key != "attention_bias"}
    return dataclasses.replace(architecture, requires=requires, reads=architecture.reads | {"attention_bias"})


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
        unused=GPT2_UNUSED,
    ),
    "gpt_bigcode": Architecture(
        BIGCODE, "GPTBigCodeForCausalLM", GPT2_KEYS, ACTIVATIONS, {},
        {**GPT2_ABSENT, "activation_function": "gelu_pytorch_tanh"}, GPT2_REQUIRES,
        _read_bigcode, _write_bigcode, reads=frozenset({"multi_query"}), unused=GPT2_UNUSED,
    ),
    "llama": _llama("LlamaForCausalLM"),
    "mistral": dataclasses.replace(
        _llama("MistralForCausalLM", num_key_value_heads=8), requires=LLAMA_REQUIRES,
        read=_read_mistral, write=_write_mistral, reads=ROPE_KEYS | {"sliding_window"},
    ),
    "qwen2": _qwen("Qwen2ForCausalLM", {"add_qkv_bias": True}),
    "qwen3": dataclasses.replace(
        _with_biases(_qwen("Qwen3ForCausalLM", {"qk_layernorm": True}, head_dim=128)), write=_write_qwen3
    ),
    "mixtral": dataclasses.replace(
        _mixture(
            _llama("MixtralForCausalLM", num_key_value_heads=8, rms_norm_eps=1e-5), MIXTRAL_BLOCK,
            MIXTRAL_KEYS, num_local_experts=8, num_experts_per_tok=2,
        ),
        requires=LLAMA_REQUIRES, read=_read_mixtral, write=_write_mistral,
        reads=ROPE_KEYS | {"sliding_window"},
    ),
    "qwen2_moe": dataclasses.replace(
        _mixture(
            _qwen("Qwen2MoeForCausalLM", {"moe_shared_expert_gate": True}),
            QWEN_MOE_BLOCK,
            {**QWEN_MOE_KEYS, "moe_shared_expert_intermediate_size": "shared_expert_intermediate_size"},
            num_experts_per_tok=4,
        ),
        read=_read_qwen2_moe, write=_write_qwen2_moe,
        reads=ROPE_KEYS | WINDOW_KEYS | EXPERT_KEYS | {"qkv_bias"},
    ),
    "qwen3_moe": dataclasses.replace(
        _mixture(
            _with_biases(_qwen("Qwen3MoeForCausalLM", {"qk_layernorm": True})), QWEN_MOE_BLOCK, QWEN_MOE_KEYS,
            num_experts_per_tok=8,
        ),
        read=_read_qwen3_moe, write=_write_qwen3_moe,
        reads=ROPE_KEYS | EXPERT_KEYS
        | {"use_sliding_window", "sliding_window", "attention_bias", "num_local_experts"},
    ),
    "mamba2": Architecture(
        MAMBA, "Mamba2ForCausalLM", MAMBA_KEYS, {},
        {"position_embedding_type": "none", "normalization": "RMSNorm", "add_bias_linear": False},
        {"layer_norm_epsilon": 1e-5, "n_groups": 8, "state_size": 128, "initializer_range": 0.1},
        {"use_bias": False, "use_conv_bias": True, "conv_kernel": WIDTH, "rms_norm": True,
         "hidden_act": "silu", "norm_before_gate": False, "rescale_prenorm_residual": False},
        _read_mamba, _write_mamba, without=WITHOUT_ATTENTION,
        reads=frozenset({"expand", "time_step_limit"}), unused=MAMBA_UNUSED,
    ),
}  # fmt: skip
BERT_ARCHITECTURES = {
    "bert": Architecture(
        BERT, "BertForPreTraining", BERT_KEYS, ACTIVATIONS, {"family": "bert", "post_norm": True},
        {
            "layer_norm_eps": 1e-12, "hidden_act": "gelu", "max_position_embeddings": 512,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        },
        {"position_embedding_type": "absolute", "type_vocab_size": 2, "is_decoder": False,
         "add_cross_attention": False, "tie_word_embeddings": True},
        _read_bert, _write_bert, unused=BERT_UNUSED,
    ),
}  # fmt: skip
T5_ARCHITECTURES = {
    "t5": Architecture(
        WeightNames(T5_TOP, T5_STACKS, copies=T5_COPIES, gated_suffix={"ffn.up": "_1"}),
        "T5ForConditionalGeneration", T5_KEYS,
        T5_ACTIVATIONS, T5_SHAPE,
        {"layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "dropout_rate": 0.1},
        {"is_decoder": False, "is_encoder_decoder": True},
        _read_t5, reads=T5_READS, unused=T5_UNUSED,
        without=("max_position_embeddings",),  # its positions are distances
    ),
}  # fmt: skip
T5_ARCHITECTURES["mt5"] = dataclasses.replace(
    T5_ARCHITECTURES["t5"],
    loaded_by="MT5ForConditionalGeneration",
    absent={**T5_ARCHITECTURES["t5"].absent, "feed_forward_proj": "gated-gelu"},
    read=_read_mt5,
    unused={**T5_UNUSED, "scale_decoder_outputs": "of T5, whose outputs may be scaled"},
)


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
    if config.qk_layernorm or config.add_qkv_bias:
        return "qwen3" if config.qk_layernorm else "qwen2"
    return "llama" if config.window_size is None else "mistral"


@dataclasses.dataclass(frozen=True)
class MegatronNames:
    """Megatron-LM's names of our modules: outside the blocks, of the stacks of blocks, and in a block."""

    top: Mapping[str, str]
    stacks: Mapping[str, str]  # our list of blocks -> what contains theirs
    layer: Mapping[str, str]
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)  # whole names in a block
    mamba_layer: Mapping[str, str] = dataclasses.field(default_factory=dict)  # in a Mamba block


GPT_LAYER = {
    "mixer_norm": "input_layernorm",
    "mixer.qkv": "self_attention.linear_qkv",
    "mixer.out": "self_attention.linear_proj",
    "mixer.query_norm": "self_attention.q_layernorm",
    "mixer.key_norm": "self_attention.k_layernorm",
    "mixer.query": "self_attention.linear_q_proj",
    "mixer.query_down": "self_attention.linear_q_down_proj",
    "mixer.query_up": "self_attention.linear_q_up_proj",
    "mixer.key_value_down": "self_attention.linear_kv_down_proj",
    "mixer.key_value_norm": "self_attention.kv_layernorm",
    "mixer.key_value_up": "self_attention.linear_kv_up_proj",
    "ffn_norm": "pre_mlp_layernorm",
    "ffn.up": "mlp.linear_fc1",
    "ffn.down": "mlp.linear_fc2",
    "ffn.router": "mlp.router",
    "ffn.shared.up": "mlp.shared_experts.linear_fc1",
    "ffn.shared.down": "mlp.shared_experts.linear_fc2",
}
GPT_MAMBA_LAYER = {
    "mixer_norm": "norm",
    "mixer.out": "mixer.out_proj",
    "mixer.projection": "mixer.in_proj",
}
GPT_PARAMETERS = {
    "mixer.convolution": "mixer.conv1d.weight",
    "mixer.convolution_bias": "mixer.conv1d.bias",
    "mixer.dt_bias": "mixer.dt_bias",
    "mixer.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.norm_weight": "mixer.norm.weight",
    "ffn.shared_gate.weight": "mlp.shared_experts.gate_weight",
}
GPT_TOP = {
    "embedding": "embedding.word_embeddings",
    "positions": "embedding.position_embeddings",
    "norm": "decoder.final_layernorm",
    "output": "output_layer",
}
MEGATRON_GPT = MegatronNames(GPT_TOP, {"layers": "decoder"}, GPT_LAYER, GPT_PARAMETERS, GPT_MAMBA_LAYER)
