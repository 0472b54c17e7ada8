"""Megatron-LM's arguments and mt's settings: what each argument of a checkpoint is, and what export says.

The `args` of a checkpoint are all of the command's arguments, of which some 300 could change the model. Each
field of megatron-core's configurations is in one of three tables here: it is used (`ModelArguments`), it must
have one of some values (`REQUIRED`), or it cannot change what the weights compute (`HARMLESS`, with the
reason). Other arguments are of the training, its data and its logs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypedDict

import torch

from ...core.config import UserError, shown
from ...core.parsing import Range, check_value
from ..model.config import (
    MOST_LAYERS,
    MOST_SIZE,
    VARIATIONS,
    ModelConfig,
    ResolvedModelConfig,
    expert_layers,
    resolve,
)
from ..model.family import family_of
from ..model.yarn import (
    MEGATRON_BETA_FAST,
    MEGATRON_BETA_SLOW,
    MEGATRON_LENGTH,
    latent_scaling,
    megatron_mscales,
)

REMEDY = "copy it again"
MOST_RANKS = 1 << 20  # of a layout

# What arguments must be, of those that `_model_config` reads; None stands for the default.
Size = Annotated[int | None, Range(1, MOST_SIZE)]
Layers = Annotated[int | None, Range(1, MOST_LAYERS)]
Number = Annotated[float | None, Range(0)]
Positive = Annotated[float | None, Range(1e-9)]


class LayoutArguments(TypedDict, total=False):
    """The arguments that say how many ranks wrote a checkpoint."""

    tensor_model_parallel_size: Annotated[int, Range(1, MOST_RANKS)]
    model_parallel_size: Annotated[int, Range(1, MOST_RANKS)]
    pipeline_model_parallel_size: Annotated[int, Range(1, MOST_RANKS)]
    expert_model_parallel_size: Annotated[int | None, Range(1, MOST_RANKS)]
    expert_tensor_parallel_size: Annotated[int | None, Range(1, MOST_RANKS)]


class ModelArguments(TypedDict, total=False):
    """The arguments that describe the model, as far as mt reads them."""

    num_layers: Layers
    hidden_size: Size
    ffn_hidden_size: Size
    num_attention_heads: Size
    group_query_attention: bool | None
    num_query_groups: Size
    kv_channels: Size
    qk_layernorm: bool | None
    max_position_embeddings: Size
    seq_length: Size
    position_embedding_type: str | None
    use_rotary_position_embeddings: bool | None
    rotary_base: Number
    rotary_interleaved: bool | None
    apply_layernorm_1p: bool | None
    layernorm_zero_centered_gamma: bool | None
    use_rope_scaling: bool | None
    rope_scaling_factor: Number
    normalization: str | None
    norm_epsilon: Number
    layernorm_epsilon: Number
    swiglu: bool | None
    squared_relu: bool | None
    openai_gelu: bool | None
    bias_gelu_fusion: bool | None
    add_bias_linear: bool | None
    add_qkv_bias: bool | None
    untie_embeddings_and_output_weights: bool | None
    init_method_std: Number
    hidden_dropout: Number
    attention_dropout: Number
    padded_vocab_size: Size
    rotary_seq_len_interpolation_factor: Positive
    num_experts: Layers
    moe_layer_freq: int | list[int] | None
    moe_ffn_hidden_size: Size
    moe_shared_expert_intermediate_size: Size
    moe_shared_expert_gate: bool | None
    moe_router_topk: Size
    moe_router_topk_scaling_factor: Number
    moe_router_num_groups: Size
    moe_router_group_topk: Size
    moe_router_score_function: str | None
    moe_router_pre_softmax: bool | None
    moe_router_enable_expert_bias: bool | None
    moe_router_bias_update_rate: Number
    moe_aux_loss_coeff: Number | list[float]
    moe_z_loss_coeff: Number
    moe_expert_capacity_factor: Number
    moe_token_drop_policy: str | None
    hybrid_override_pattern: str | None
    hybrid_layer_pattern: str | None
    mamba_state_dim: Size
    mamba_head_dim: Size
    mamba_num_groups: Size
    mamba_num_heads: Size
    softmax_scale: Number
    mtp_num_layers: Annotated[int | None, Range(0, 1e5)]
    mtp_loss_scaling_factor: Number
    multi_latent_attention: bool | None
    q_lora_rank: Size
    kv_lora_rank: Size
    qk_head_dim: Size
    qk_pos_emb_head_dim: Size
    v_head_dim: Size
    rope_type: str | None
    rotary_scaling_factor: Positive
    original_max_position_embeddings: Positive
    beta_fast: Positive
    beta_slow: Positive
    mscale: Number
    mscale_all_dim: Number


# Arguments that mt supports only at some values -> these; their default comes first, and None stands for it.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "qk_l2_norm": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "window_size": (None,),
    "window_attn_skip_freq": (None,),
    "rotary_percent": (1.0,),
    "quick_geglu": (False,),
    "glu_linear_offset": (0.0,),
    "activation_func_clamp_value": (None,),
    "experimental_attention_variant": (None,),
    "linear_attention_freq": (None,),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_block_specs": (False,),
    "softmax_type": ("vanilla",),
    "attention_output_gate": (False,),
    "no_rope_freq": (None,),
    "mrope_section": (None,),
    "use_mup": (False,),
    "position_embedding_type": ("learned_absolute", "rope", "none"),
    "normalization": ("LayerNorm", "RMSNorm"),
    "moe_router_topk_limited_devices": (None,),
    "moe_router_force_load_balancing": (False,),
    "moe_apply_probs_on_input": (False,),
    "moe_latent_size": (None,),
    "moe_input_jitter_eps": (None, 0.0),
    "moe_pad_expert_input_to_capacity": (False,),
    "hybrid_attention_ratio": (0.0,),
    "hybrid_mlp_ratio": (0.0,),
    "quant_recipe": (None,),
    "fp4": (None,),
    "qk_clip": (False,),
    "use_kitchen": (False,),
    "retro_add_retriever": (False,),
    "add_retriever": (False,),
}
_LAYOUT = "mt joins the shards of all ranks"
_KERNEL = "another kernel or schedule for the same numbers"
_TRAINING = "of the training, not of what the weights compute"
_NUMERICS = "a precision of the training; mt computes in its own"
_UNUSED = "read only with an argument that must have its default"
# Fields of megatron-core's configurations that cannot change what the weights compute -> why.
HARMLESS: dict[str, str] = {
    **dict.fromkeys(
        (
            "num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage",
            "pipeline_model_parallel_layout", "account_for_embedding_in_pipeline_split",
            "account_for_loss_in_pipeline_split", "context_parallel_size", "cp_comm_type",
            "expert_model_parallel_size", "expert_tensor_parallel_size", "tensor_model_parallel_size",
            "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size", "sequence_parallel",
            "hierarchical_context_parallel_sizes", "hybrid_context_parallel", "max_seqlen_per_dp_cp_rank",
            "microbatch_group_size_per_vp_stage", "moe_extended_tp", "mtp_standalone",
            "hetereogenous_dist_checkpoint", "pipeline_model_parallel_comm_backend", "variable_seq_lengths",
        ),
        _LAYOUT,
    ),
    **dict.fromkeys(
        (
            "attention_backend", "masked_softmax_fusion", "persist_layer_norm", "memory_efficient_layer_norm",
            "bias_dropout_fusion", "apply_rope_fusion", "use_fused_weighted_squared_relu",
            "fused_single_qkv_rope", "moe_shared_expert_overlap", "moe_grouped_gemm",
            "moe_use_legacy_grouped_gemm", "moe_token_dispatcher_type", "moe_enable_deepep",
            "moe_flex_dispatcher_backend", "moe_permute_fusion", "moe_router_fusion", "moe_deepep_num_sms",
            "moe_hybridep_num_sms", "moe_router_padding_for_quantization", "moe_router_padding_for_fp8",
            "enable_cuda_graph", "cuda_graph_use_single_mempool", "cuda_graph_retain_backward_graph",
            "cuda_graph_warmup_steps", "external_cuda_graph", "cuda_graph_impl", "cuda_graph_scope",
            "clone_scatter_output_in_embedding", "disable_parameter_transpose_cache", "flash_decode",
            "batch_invariant_mode", "use_te_activation_func", "symmetric_ar_type",
            "use_inference_optimized_layers", "inference_fuse_tp_communication", "use_mamba_mem_eff_path",
            "mlp_chunks_for_prefill", "transformer_impl", "kitchen_attention_backend",
            "use_kitchen_attention", "activation_func_fp8_input_store", "cross_entropy_loss_fusion",
            "cross_entropy_fusion_impl", "gradient_accumulation_fusion", "deterministic_mode",
            "async_tensor_model_parallel_allreduce", "batch_p2p_comm", "batch_p2p_sync", "overlap_p2p_comm",
            "overlap_p2p_comm_warmup_flush", "barrier_with_L1_time", "deallocate_pipeline_outputs",
            "defer_embedding_wgrad_compute", "delay_wgrad_compute", "wgrad_deferral_limit",
            "ep_overlap_early_attn_memory_release", "overlap_moe_expert_parallel_comm",
            "use_ring_exchange_p2p", "use_te_rng_tracker", "tp_comm_atomic_ag", "tp_comm_atomic_rs",
            "tp_comm_bootstrap_backend", "tp_comm_bulk_dgrad", "tp_comm_bulk_wgrad", "tp_comm_overlap",
            "tp_comm_overlap_ag", "tp_comm_overlap_disable_fc1", "tp_comm_overlap_disable_qkv",
            "tp_comm_overlap_rs", "tp_comm_overlap_rs_dgrad", "tp_comm_split_ag", "tp_comm_split_rs",
            "cache_mla_latents",
            "apply_query_key_layer_scaling",  # divides the scores, and multiplies them again before softmax
        ),
        _KERNEL,
    ),
    **dict.fromkeys(
        (
            "qk_clip_alpha", "qk_clip_threshold", "log_max_attention_logit",
            "test_mode", "calculate_per_token_loss", "init_method", "output_layer_init_method",
            "embedding_init_method", "embedding_init_method_std", "init_model_with_meta_device",
            "recompute_granularity", "recompute_method", "recompute_num_layers", "recompute_modules",
            "distribute_saved_activations", "moe_layer_recompute", "moe_router_load_balancing_type",
            "moe_enable_routing_replay", "moe_per_layer_logging", "moe_token_dropping", "config_logger_dir",
            "inference_rng_tracker", "inference_sampling_seed", "fine_grained_activation_offloading",
            "offload_modules", "min_offloaded_tensor_size", "cpu_offloading", "cpu_offloading_activations",
            "cpu_offloading_double_buffering", "cpu_offloading_num_layers", "cpu_offloading_weights",
            "_cpu_offloading_context", "finalize_model_grads_func", "grad_scale_func", "grad_sync_func",
            "no_sync_func", "param_sync_func", "num_microbatches_with_partial_activation_checkpoints",
            "perform_initialization", "use_cpu_initialization", "timers",
        ),
        _TRAINING,
    ),
    **dict.fromkeys(
        (
            "fp32_residual_connection", "attention_softmax_in_fp32", "disable_bf16_reduced_precision_matmul",
            "fp8", "fp8_recipe", "fp8_param", "fp8_quantizer_factory", "fp8_margin", "fp8_interval",
            "fp8_amax_history_len", "fp8_amax_compute_algo", "fp8_wgrad", "fp8_dot_product_attention",
            "fp8_multi_head_attention", "tp_only_amax_red", "first_last_layers_bf16",
            "num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16", "moe_router_dtype", "bf16", "fp16",
            "params_dtype", "pipeline_dtype", "autocast_dtype", "enable_autocast",
        ),
        _NUMERICS,
    ),
    **dict.fromkeys(
        (
            "dsa_indexer_n_heads", "dsa_indexer_head_dim",
            "dsa_indexer_topk", "dsa_indexer_loss_coeff", "dsa_indexer_use_sparse_loss",
            "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads",
            "linear_num_value_heads", "fp4_recipe", "fp4_param", "fp4_quantizer_factory",
        ),
        _UNUSED,
    ),
    "is_hybrid_model": "follows from the pattern of layers",
    # the command's arguments say these by other names, which are used
    "num_moe_experts": "args say num_experts",
    "gated_linear_unit": "args say swiglu",
    "activation_func": "args say swiglu, squared_relu, openai_gelu",
    "bias_activation_fusion": "args say bias_gelu_fusion",
}  # fmt: skip


def check_arguments(args: argparse.Namespace, place: str) -> None:
    """Raises UserError for arguments of a model that mt does not have, and if required ones are missing."""
    check_value(vars(args), ModelArguments, f"{place}: its args", REMEDY)
    for name, fine in REQUIRED.items():
        value = getattr(args, name, None)
        # Compared as plain values: a stranger's object may be equal to everything.
        if value is not None and (
            not isinstance(value, str | int | float) or not any(value == f and f is not None for f in fine)
        ):
            if value is False and fine[0] is None:
                continue
            told = f"only {' or '.join(map(str, fine))} can be loaded" if len(fine) > 1 else ""
            raise UserError(
                f"{place}: {name} is {shown(value)}; {told or 'a model with it cannot be loaded'}"
            )
    for name in ("num_layers", "hidden_size", "num_attention_heads", "padded_vocab_size"):
        if getattr(args, name, None) is None:
            raise UserError(f"{place}: its args have no {name}; it is no checkpoint of a GPT")


def _rope_scaling(factor: float) -> dict[str, Any]:
    """mt's rope_scaling for Megatron-LM's --use-rope-scaling, of which only the factor can be set."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _linear(factor: float) -> dict[str, Any]:
    """mt's rope_scaling for --rotary-seq-len-interpolation-factor."""
    return {"rope_type": "linear", "factor": factor}


LATENT_SETTINGS = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
LATENT_DEFAULTS = {
    "kv_lora_rank": 32, "qk_head_dim": 128, "qk_pos_emb_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip


def _latent_settings(get: Callable[..., Any], place: str) -> dict[str, Any]:
    """The settings of --multi-latent-attention, whatever those of other attention say."""
    if get("hybrid_override_pattern", get("hybrid_layer_pattern")):
        raise UserError(
            f"{place}: has multi_latent_attention and a pattern of layers; only one can be loaded"
        )
    kind = get("rope_type", "yarn")
    if kind not in ("rope", "yarn"):
        raise UserError(f"{place}: rope_type is {shown(kind)}; only rope or yarn can be loaded")
    positions = "rope" if get("use_rotary_position_embeddings") else get("position_embedding_type")
    if positions not in ("rope", "none"):
        raise UserError(
            f"{place}: position_embedding_type is {shown(positions)} beside"
            " multi_latent_attention, which rotates its own; only rope and none can be loaded"
        )
    sizes = {name: get(name, LATENT_DEFAULTS.get(name)) for name in LATENT_SETTINGS}
    more = {"original_max_position_embeddings": get("original_max_position_embeddings", MEGATRON_LENGTH)}
    for name, default in (("beta_fast", MEGATRON_BETA_FAST), ("beta_slow", MEGATRON_BETA_SLOW)):
        if get(name, default) != default:
            more[name] = get(name)
    return {
        "multi_latent_attention": True,
        **sizes,
        "position_embedding_type": "rope",
        "num_query_groups": None,
        "kv_channels": None,
        "add_qkv_bias": False,
        **latent_scaling(
            kind,
            float(get("rotary_scaling_factor", 1.0)),
            float(get("mscale", 1.0)),
            float(get("mscale_all_dim", 0.0)),
            sizes["qk_head_dim"] + sizes["qk_pos_emb_head_dim"],
            more,
        ),
    }


def model_config(args: argparse.Namespace, place: str) -> ResolvedModelConfig:
    """mt's settings for Megatron-LM's arguments; padding rows of the vocabulary count as vocabulary."""
    check_arguments(args, place)

    def get(name: str, default: Any = None) -> Any:
        value = getattr(args, name, None)
        return default if value is None else value

    rope = get("use_rotary_position_embeddings", False) or get("position_embedding_type") == "rope"
    without = get("position_embedding_type") == "none"
    bias = get("add_bias_linear", True)
    pattern = get("hybrid_override_pattern", get("hybrid_layer_pattern"))
    experts = get("num_experts")
    settings: dict[str, Any] = {}
    if experts is not None:
        frequency = get("moe_layer_freq", 1)
        settings = {
            name: get(name) for name in MOE_SETTINGS if get(name) is not None and name != "moe_layer_freq"
        } | ({} if pattern else {"moe_layer_freq": str(frequency).replace(" ", "")})
        if isinstance(settings.get("moe_aux_loss_coeff"), list):
            settings["moe_aux_loss_coeff"] = float(sum(settings["moe_aux_loss_coeff"]))
        if settings.get("moe_expert_capacity_factor") is None:
            settings.pop("moe_token_drop_policy", None)
        if settings.get("moe_shared_expert_intermediate_size") is None:
            settings.pop("moe_shared_expert_gate", None)
    if "M" in (pattern or ""):
        settings |= {name: get(name) for name in MAMBA_SETTINGS if get(name) is not None}
    described: dict[str, Any] = dict(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=get("ffn_hidden_size"),
        num_attention_heads=args.num_attention_heads,
        num_query_groups=get("num_query_groups") if get("group_query_attention", False) else None,
        kv_channels=get("kv_channels"),
        qk_layernorm=get("qk_layernorm", False),
        max_position_embeddings=get("max_position_embeddings"),
        position_embedding_type="rope" if rope else "none" if without else "learned",
        rotary_base=float(get("rotary_base", 10000)),
        rotary_interleaved=rope and bool(get("rotary_interleaved", False)),
        rope_scaling=_rope_scaling_of(args, place) if rope else None,
        normalization=get("normalization", "LayerNorm"),
        apply_layernorm_1p=bool(
            get("apply_layernorm_1p", False) or get("layernorm_zero_centered_gamma", False)
        ),
        layernorm_epsilon=get("norm_epsilon", get("layernorm_epsilon", 1e-5)),
        activation=_activation(get, bias),
        add_bias_linear=bias,
        add_qkv_bias=get("add_qkv_bias", False),
        untie_embeddings_and_output_weights=get("untie_embeddings_and_output_weights", False),
        init_method_std=get("init_method_std", 0.02),
        hidden_dropout=get("hidden_dropout", 0.0),
        attention_dropout=get("attention_dropout", 0.0),
        vocab_size=args.padded_vocab_size,
        make_vocab_size_divisible_by=args.padded_vocab_size,
        hybrid_override_pattern=pattern,
        num_experts=experts,
        mtp_num_layers=get("mtp_num_layers", 0),
        mtp_loss_scaling_factor=get("mtp_loss_scaling_factor", 0.1) if get("mtp_num_layers", 0) else 0.1,
        **settings,
    )
    if get("multi_latent_attention", False):
        described |= _latent_settings(get, place)
    try:
        config = ModelConfig(**described)
        resolved = resolve(config, vocab_size=args.padded_vocab_size, seq_length=get("seq_length", 1024))
    except UserError as error:
        raise UserError("\n".join(f"{place}: {line}" for line in str(error).split("\n"))) from None
    # multi-latent attention has its own, whatever softmax_scale says
    scale = None if resolved.multi_latent_attention else getattr(args, "softmax_scale", None)
    if scale is not None and abs(scale - resolved.kv_channels**-0.5) > 1e-6:
        raise UserError(
            f"{place}: softmax_scale is {scale:g}; only kv_channels^-0.5 = {resolved.kv_channels**-0.5:g} can"
            " be loaded"
        )
    return resolved


# mt has these by the same names
MOE_SETTINGS = (
    "moe_layer_freq", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_shared_expert_gate",
    "moe_router_topk", "moe_router_score_function", "moe_router_pre_softmax", "moe_router_enable_expert_bias",
    "moe_router_bias_update_rate", "moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_expert_capacity_factor",
    "moe_token_drop_policy", "moe_router_num_groups", "moe_router_group_topk",
    "moe_router_topk_scaling_factor",
)  # fmt: skip
MAMBA_SETTINGS = ("mamba_state_dim", "mamba_head_dim", "mamba_num_groups", "mamba_num_heads")


def _rope_scaling_of(args: argparse.Namespace, place: str) -> dict[str, Any] | None:
    factor = getattr(args, "rotary_seq_len_interpolation_factor", None)
    if not getattr(args, "use_rope_scaling", None):
        return None if factor in (None, 1) else _linear(float(factor))
    if factor not in (None, 1):
        raise UserError(
            f"{place}: rotary_seq_len_interpolation_factor is {factor:g} beside use_rope_scaling; a model"
            " with both cannot be loaded"
        )
    return _rope_scaling(getattr(args, "rope_scaling_factor", None) or 8.0)


def _activation(
    get: Callable[..., Any], bias: bool
) -> Literal["swiglu", "squared_relu", "gelu_tanh", "gelu"]:
    if get("swiglu", False):
        return "swiglu"
    if get("squared_relu", False):
        return "squared_relu"
    # Megatron-LM's kernel that fuses bias and GELU, on by default, computes the tanh approximation.
    return "gelu_tanh" if get("openai_gelu", False) or (get("bias_gelu_fusion", True) and bias) else "gelu"


def check_export(
    config: ResolvedModelConfig, tensor_parallel: int, pipeline_parallel: int, *, local: bool
) -> None:
    """Raises UserError for a model that Megatron-LM lacks, and for a layout that does not divide it.

    local: for its local layers, which cut the projections to latents too.
    """
    scaling = config.rope_scaling
    latent = config.multi_latent_attention
    rules = [
        ("family", family_of(config).megatron is not None),
        ("position_embedding_type", config.position_embedding_type in ("learned", "rope", "none")),
        ("window_size", config.window_size is None),
        ("multi_latent_attention", not (latent and config.hybrid_override_pattern)),
        ("activation", config.activation in ("gelu", "gelu_tanh", "swiglu", "squared_relu")),
        (
            "rope_scaling",
            scaling is None
            or (latent and megatron_mscales(scaling) is not None)
            or (
                not latent
                and dict(scaling)
                in (_rope_scaling(scaling.get("factor", 8.0)), _linear(scaling.get("factor", 1.0)))
            ),
        ),
        *(
            (name, getattr(config, name) == ModelConfig.__dataclass_fields__[name].default)
            for name in sorted(
                (VARIATIONS - {"apply_layernorm_1p"})
                | {"rotary_percent", "latent_layernorm_epsilon", "moe_router_group_score_topk"}
            )
        ),
    ]
    for field, holds in rules:
        if not holds:
            raise UserError(
                f"Megatron-LM has no such GPT, as far as mt writes it: {field} ="
                f" {getattr(config, field)}; export it with --format hf"
            )
    pattern = config.hybrid_override_pattern or "*-"
    divided = ["num_query_groups"] if "*" in pattern else []
    divided += ["ffn_hidden_size"] if "-" in pattern else []
    divided += ["moe_ffn_hidden_size", "moe_shared_expert_intermediate_size"] if config.num_experts else []
    divided += ["mamba_num_groups"] if "M" in pattern else []
    divided += ["hidden_size"] if config.mtp_num_layers else []
    numbers = {name: getattr(config, name) or 0 for name in divided}
    if latent and local:
        numbers["q_lora_rank"] = config.q_lora_rank or 0
        numbers["kv_lora_rank + qk_pos_emb_head_dim"] = config.kv_lora_rank + config.qk_pos_emb_head_dim
    for name, number in numbers.items():
        if number % tensor_parallel:
            raise UserError(
                f"target_tensor_parallel_size = {tensor_parallel} does not divide model.{name} = {number};"
                " use fewer ranks"
            )
    if config.num_layers % pipeline_parallel:
        raise UserError(
            f"target_pipeline_parallel_size = {pipeline_parallel} does not divide model.num_layers ="
            f" {config.num_layers}; use another number of stages"
        )


def loader_flags(config: ResolvedModelConfig) -> list[str]:
    """The flags that Megatron-LM needs beside --use-checkpoint-args to load the model as it is.

    Its load_args_from_checkpoint takes sizes, positions, norm kind and biases from the file. These it does
    not take; without them it would load the same weights as another model.
    """
    flags = [f"--norm-epsilon {config.layernorm_epsilon:g}"] if config.layernorm_epsilon != 1e-5 else []
    if config.activation in ("gelu", "gelu_tanh") and config.add_bias_linear:
        # Its fused bias and GELU, the default, computes the tanh approximation.
        flags += ["--no-bias-gelu-fusion"] if config.activation == "gelu" else ["--openai-gelu"]
    elif config.activation == "gelu_tanh":
        flags.append("--openai-gelu")
    if config.qk_layernorm:
        flags.append("--qk-layernorm")
    scaling = config.rope_scaling
    if config.multi_latent_attention:
        flags += _latent_flags(config)
    elif scaling is not None and scaling["rope_type"] == "llama3":
        flags.append(f"--use-rope-scaling --rope-scaling-factor {scaling['factor']:g}")
    elif scaling is not None:
        flags.append(f"--rotary-seq-len-interpolation-factor {scaling['factor']:g}")
    if config.position_embedding_type == "rope":
        flags.append(f"--rotary-base {config.rotary_base:.0f}")
    if config.rotary_interleaved:
        flags.append("--rotary-interleaved")
    if config.apply_layernorm_1p:
        flags.append("--apply-layernorm-1p")
    if config.add_qkv_bias and not config.add_bias_linear:
        flags.append("--add-qkv-bias")
    if config.hidden_dropout != 0.1 or config.attention_dropout != 0.1:
        flags.append(f"--hidden-dropout {config.hidden_dropout:g}")
        flags.append(f"--attention-dropout {config.attention_dropout:g}")
    if config.num_experts is not None:
        flags.append(f"--moe-router-topk {config.moe_router_topk}")
        flags.append(f"--moe-router-score-function {config.moe_router_score_function}")
        flags += ["--moe-router-pre-softmax"] if config.moe_router_pre_softmax else []
        flags += ["--moe-router-enable-expert-bias"] if config.moe_router_enable_expert_bias else []
        flags.append(f"--moe-layer-freq '{config.moe_layer_freq}'")
        flags.append(f"--moe-ffn-hidden-size {config.expert_size}")
        if config.moe_shared_expert_intermediate_size:
            flags.append(
                f"--moe-shared-expert-intermediate-size {config.moe_shared_expert_intermediate_size}"
            )
        for name in ("num_groups", "group_topk", "topk_scaling_factor"):
            if (value := getattr(config, f"moe_router_{name}")) is not None:
                flags.append(f"--moe-router-{name.replace('_', '-')} {value:g}")
        flags += ["--moe-shared-expert-gate"] if config.moe_shared_expert_gate else []
    if config.mtp_num_layers:
        flags.append(f"--mtp-num-layers {config.mtp_num_layers}")
        flags.append(
            f"--mtp-loss-scaling-factor {config.mtp_loss_scaling_factor:g} --calculate-per-token-loss"
        )
    return flags


def _latent_flags(config: ResolvedModelConfig) -> list[str]:
    values = {name: getattr(config, name) for name in LATENT_SETTINGS} | _latent_arguments(config)
    flags = [f"--{n.replace('_', '-')} {v}" for n, v in values.items() if v is not None]
    return ["--multi-latent-attention", *flags]


def _latent_arguments(config: ResolvedModelConfig) -> dict[str, Any]:
    """The arguments of the positions of multi-latent attention."""
    if config.rope_scaling is None:
        return {"rope_type": "rope", "rotary_scaling_factor": 1.0}
    mscales = megatron_mscales(config.rope_scaling)
    assert mscales is not None, "check_export refuses others"
    return {
        "rope_type": "yarn",
        "rotary_scaling_factor": config.rope_scaling["factor"],
        "mscale": mscales[0],
        "mscale_all_dim": mscales[1],
    }


def export_arguments(
    config: ResolvedModelConfig,
    padded: int,
    seq_length: int,
    step: int,
    dtype: torch.dtype,
    tensor_parallel: int,
    pipeline_parallel: int,
    local: bool,
    format: str,
) -> argparse.Namespace:
    """The settings by Megatron-LM's names, for its --use-checkpoint-args."""
    positions, scaling = config.position_embedding_type, config.rope_scaling or {}
    return argparse.Namespace(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads,
        group_query_attention=config.num_query_groups != config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        # local layers need that of the values, transformer-engine's read the arguments of the latents
        kv_channels=config.v_head_dim if config.multi_latent_attention else config.kv_channels,
        qk_layernorm=config.qk_layernorm,
        max_position_embeddings=config.max_position_embeddings,
        seq_length=seq_length,
        position_embedding_type="learned_absolute" if positions == "learned" else positions,
        add_position_embedding=positions == "learned",
        use_rotary_position_embeddings=positions == "rope",
        rotary_base=config.rotary_base,
        rotary_percent=1.0,
        rotary_interleaved=config.rotary_interleaved,
        use_rope_scaling=scaling.get("rope_type") == "llama3",
        rope_scaling_factor=scaling.get("factor", 8.0),
        rotary_seq_len_interpolation_factor=scaling["factor"]
        if scaling.get("rope_type") == "linear"
        else None,
        normalization=config.normalization,
        apply_layernorm_1p=config.apply_layernorm_1p,
        norm_epsilon=config.layernorm_epsilon,
        layernorm_epsilon=config.layernorm_epsilon,
        swiglu=config.activation == "swiglu",
        squared_relu=config.activation == "squared_relu",
        openai_gelu=config.activation == "gelu_tanh",
        bias_gelu_fusion=False,
        add_bias_linear=config.add_bias_linear,
        add_qkv_bias=config.add_qkv_bias,
        untie_embeddings_and_output_weights=config.untie_embeddings_and_output_weights,
        init_method_std=config.init_method_std,
        hidden_dropout=config.hidden_dropout,
        attention_dropout=config.attention_dropout,
        padded_vocab_size=padded,
        make_vocab_size_divisible_by=config.make_vocab_size_divisible_by,
        tensor_model_parallel_size=tensor_parallel,
        pipeline_model_parallel_size=pipeline_parallel,
        virtual_pipeline_model_parallel_size=None,
        multi_latent_attention=config.multi_latent_attention,
        **(
            {name: getattr(config, name) for name in LATENT_SETTINGS} | _latent_arguments(config)
            if config.multi_latent_attention
            else {}
        ),
        num_experts=config.num_experts,
        **(
            {name: getattr(config, name) for name in MOE_SETTINGS if name != "moe_layer_freq"}
            if config.num_experts
            else {}
        ),
        moe_layer_freq=_frequency(config),
        mtp_num_layers=config.mtp_num_layers or None,
        mtp_loss_scaling_factor=config.mtp_loss_scaling_factor,
        hybrid_override_pattern=config.hybrid_override_pattern,
        **(
            {name: getattr(config, name) for name in MAMBA_SETTINGS} if config.hybrid_override_pattern else {}
        ),
        expert_model_parallel_size=1,
        params_dtype=dtype,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        transformer_impl="local" if local else "transformer_engine",
        ckpt_format=format,
        use_legacy_models=False,
        iteration=step,
        consumed_train_samples=0,
        consumed_valid_samples=0,
        tokenizer_type=None,
    )


def _frequency(config: ResolvedModelConfig) -> int | list[int]:
    if config.moe_layer_freq.isdigit():
        return int(config.moe_layer_freq)
    return [int(flag) for flag in expert_layers(config.moe_layer_freq, config.num_layers)]
