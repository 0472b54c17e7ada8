"""ModelConfig, the settings of a model, their rules, and `resolve`, which fills in open settings."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from typing import Any, Literal

from ...core.config import check, configuration, option
from .positions import scaling_mistake

GATED = ("swiglu", "geglu")  # activations of a gate, which multiplies the output of a second matrix
LAYER_SYMBOLS = "M*-E"
MOST_SIZE = (1 << 31) - 1  # of any number of layers, heads, channels, rows: torch's kernels count in int32
MOST_LAYERS = 100_000  # lists of a value for each layer are made before any weight is looked at
MIXTURE_SIZES = (
    "num_experts", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size", "moe_router_topk",
)  # fmt: skip
MAMBA_SIZES = ("mamba_state_dim", "mamba_head_dim", "mamba_num_groups", "mamba_num_heads")
FACTORS = (
    "softmax_scale", "attn_logit_softcapping", "final_logit_softcapping", "embedding_multiplier",
    "residual_multiplier", "logits_scaling",
)  # fmt: skip
LATENT_SIZES = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
COUNTS = ("num_layers", "decoder_num_layers", "retro_encoder_layers", "num_experts", "mtp_num_layers")
RETRO_SIZES = ("retro_chunk_length", "retro_num_neighbors", "retro_encoder_layers")


@dataclasses.dataclass(frozen=True)
class FamilySettings:
    """Which settings of ModelConfig the models of a family take. family.py holds the rest of a family."""

    positions: tuple[str, ...]  # values of position_embedding_type
    takes: frozenset[str]  # those of the settings (or groups of settings) that other families do not take


# what every decoder takes: settings of causal attention and of the output layer
DECODER = frozenset({"window_size", "attention_backend", "untie_embeddings_and_output_weights"})
# what some decoders of family gpt have and others do not: Gemma, OLMo 2, Granite ...
VARIATIONS = frozenset(
    {
        "sublayer_norms",
        "apply_layernorm_1p",
        "qk_layernorm_scope",
        "softmax_scale",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "embedding_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "window_attn_skip_freq",
        "rotary_local_base",
        "add_attention_bias",
        "embed_layernorm",
    }
)
FAMILY_SETTINGS = {
    "gpt": FamilySettings(
        ("learned", "rope", "alibi", "none"),
        DECODER
        | {"hybrid_override_pattern", "num_experts", "retro_add_retriever", "rotary_percent"}
        | {"multi_latent_attention", "rotary_interleaved", "mtp_num_layers", "mtp_loss_scaling_factor"}
        | VARIATIONS,
    ),
    "gpt_neox": FamilySettings(("rope",), DECODER | {"rotary_percent"}),
    "falcon": FamilySettings(("rope",), DECODER | {"parallel_norms"}),
    "bert": FamilySettings(("learned",), frozenset({"post_norm"})),
    "t5": FamilySettings(
        ("learned", "relative", "none"),
        frozenset({"decoder_num_layers", "untie_embeddings_and_output_weights"})
        | {"relative_attention_num_buckets", "relative_attention_max_distance"},
    ),
    "ict": FamilySettings(("learned",), frozenset({"post_norm", "biencoder"})),
}


@configuration(group="model")
class ModelConfig:
    """The architecture of a model. `resolve` fills in the settings that are None."""

    family: Literal["gpt", "gpt_neox", "falcon", "bert", "t5", "ict"] = option(
        "gpt",
        "gpt: decoder (GPT-2, Llama, Mistral, hybrids ...); gpt_neox: decoder with parallel attention and"
        " feed-forward (Pythia); falcon: the same with one norm or two in a block; bert: masked language"
        " model; t5: encoder and decoder; ict: two BERTs, of queries and of the blocks that answer them",
    )
    num_layers: int | None = option(
        None, "transformer layers; t5: of the encoder (default: 12, or as many as the pattern has)"
    )
    decoder_num_layers: int | None = option(None, "t5: layers of the decoder (default: num-layers)")
    hybrid_override_pattern: str | None = option(
        None,
        "a symbol for each layer: M Mamba-2, * attention, - feed-forward, E experts (default: attention and"
        " feed-forward in every layer)",
    )
    hidden_size: int = option(768, "width of the residual stream")
    ffn_hidden_size: int | None = option(
        None,
        "width of the feed-forward layer (default: 4 x hidden-size; where it is gated, 8/3 of it, rounded"
        " down to a multiple of 64)",
    )
    num_attention_heads: int = option(12, "attention heads")
    num_query_groups: int | None = option(
        None,
        "key-value heads, each shared by heads / groups query heads; 1: multi-query attention (default: one"
        " per head)",
    )
    kv_channels: int | None = option(None, "channels of a head (default: hidden-size / num-attention-heads)")
    multi_latent_attention: bool = option(
        False,
        "keys and values from one small latent a token, which generation caches in their place (DeepSeek-V2);"
        " qk-layernorm then normalises the latents",
        added=True,
    )
    q_lora_rank: int | None = option(
        None, "multi-latent attention: size of the queries' latent (default: queries have none)", added=True
    )
    kv_lora_rank: int = option(
        512, "multi-latent attention: size of the latent of keys and values", added=True
    )
    qk_head_dim: int = option(
        128, "multi-latent attention: channels of a head's queries and keys that are not rotated", added=True
    )
    qk_pos_emb_head_dim: int = option(
        64, "multi-latent attention: rotated channels of a head, whose keys all heads share", added=True
    )
    v_head_dim: int = option(128, "multi-latent attention: channels of a head's values", added=True)
    latent_layernorm_epsilon: float | None = option(
        None, "multi-latent attention: layernorm-epsilon of the latents (default: the same)", added=True
    )
    window_size: int | None = option(
        None, "sliding window: tokens that a query attends to, its own included (default: all before it)"
    )
    window_attn_skip_freq: str | None = option(
        None,
        "which layers have the window: N for all but every N-th, or a list of 0 and 1 for all of them, such"
        " as [1,1,0]*8 (default: all)",
        added=True,
    )
    qk_layernorm: bool = option(False, "normalise every head's queries and keys")
    qk_layernorm_scope: Literal["head", "all_heads"] = option(
        "head", "what qk-layernorm normalises: each head, or all heads together (OLMo 2)", added=True
    )
    softmax_scale: float | None = option(
        None, "factor of the attention scores (default: kv-channels^-0.5)", added=True
    )
    attn_logit_softcapping: float | None = option(
        None, "limit c of the attention scores s: c tanh(s / c) (default: none)", added=True
    )
    final_logit_softcapping: float | None = option(
        None, "limit c of the logits z: c tanh(z / c) (default: none)", added=True
    )
    attention_backend: Literal["auto", "sdpa", "flex", "varlen", "flash", "transformer-engine"] = option(
        "auto",
        "backend of causal attention: torch's SDPA, FlexAttention or variable-length kernel, or the packages"
        " flash-attn and transformer-engine; auto: sdpa, or the best installed one where documents or a"
        " window are masked",
    )
    max_position_embeddings: int | None = option(None, "longest sequence (default: seq-length)")
    position_embedding_type: Literal["learned", "rope", "alibi", "relative", "none"] = option(
        "learned",
        "position embeddings; alibi: scores lose the distance times a slope of each head (BLOOM); relative:"
        " T5's biases by buckets of distances, with scores that are not divided by the root of kv-channels",
    )
    relative_attention_num_buckets: int = option(
        32, "t5: buckets of distances, each with a bias of its own for every head", added=True
    )
    relative_attention_max_distance: int = option(
        128, "t5: tokens; distances from here on share a bucket", added=True
    )
    rotary_base: float = option(10000.0, "rope: base of the frequencies")
    rotary_percent: float = option(
        1.0, "gpt, gpt_neox: share of a head's channels that are rotated", added=True
    )
    rotary_interleaved: bool = option(
        False, "rope: rotate neighbouring channels of a head (GPT-J) instead of its two halves", added=True
    )
    rotary_local_base: float | None = option(
        None,
        "rope: base of the frequencies in layers that have the window, which rope-scaling leaves as they are"
        " (default: as all others)",
        added=True,
    )
    parallel_norms: int = option(
        2, "falcon: 2: a norm for attention and one for the feed-forward layer; 1: one for both", added=True
    )
    rope_scaling: dict | None = option(
        None,
        "rope: frequencies for longer sequences, a mapping with the keys of Hugging Face's config.json"
        " (rope_type: linear, dynamic, llama3, yarn, longrope; factor: ...)",
    )
    normalization: Literal["LayerNorm", "RMSNorm"] = option("LayerNorm", "kind of normalisation")
    layernorm_epsilon: float = option(1e-5, "added to the variance by the normalisation")
    apply_layernorm_1p: bool = option(
        False, "add 1 to the weights of norms, which then begin with 0", added=True
    )
    sublayer_norms: Literal["input", "output", "both"] = option(
        "input",
        "where attention and feed-forward layers have norms: on their input, on their output before it is"
        " added (OLMo 2), or on both (Gemma 2)",
        added=True,
    )
    post_norm: bool = option(
        False,
        "bert: normalise the sum after each sublayer, as Devlin et al. and Hugging Face do, instead of the"
        " sublayer's input, as Megatron-LM does",
    )
    activation: Literal["gelu", "gelu_tanh", "relu", "squared_relu", "swiglu", "geglu"] = option(
        "gelu", "of the feed-forward layer; gelu_tanh is GPT-2's approximation, geglu T5 v1.1's gate"
    )
    add_bias_linear: bool = option(True, "biases in linear layers")
    add_qkv_bias: bool = option(
        False, "biases in the projection to queries, keys and values, whatever add-bias-linear says"
    )
    add_attention_bias: bool = option(
        False,
        "biases in the projections of attention, that of its output included, whatever add-bias-linear says",
        added=True,
    )
    embed_layernorm: bool = option(
        False, "normalise the embeddings of tokens, before positions are added (BLOOM)", added=True
    )
    embedding_multiplier: float = option(1.0, "factor of the embedding", added=True)
    residual_multiplier: float = option(
        1.0, "factor of the output of each sublayer before it is added", added=True
    )
    logits_scaling: float = option(1.0, "divisor of the logits", added=True)
    mtp_num_layers: int = option(
        0,
        "multi-token prediction: in training, each of so many layers after the last predicts one more token"
        " ahead (DeepSeek-V3)",
        added=True,
    )
    mtp_loss_scaling_factor: float = option(
        0.1, "multi-token prediction: weight of the mean of its losses beside the model's own", added=True
    )
    bert_binary_head: bool = option(
        True, "bert: samples of two segments, half of them swapped, and a head that predicts their order"
    )
    biencoder_projection_dim: int = option(
        0, "ict: size of an embedding, a projection of the first token's state; 0: that state itself"
    )
    biencoder_shared_query_context_model: bool = option(False, "ict: one BERT for queries and blocks")
    retriever_score_scaling: bool = option(False, "ict: divide scores by the root of hidden-size")
    untie_embeddings_and_output_weights: bool = option(
        False, "an output layer with its own weight instead of the embedding's"
    )
    init_method_std: float = option(0.02, "standard deviation of the initial weights")
    embedding_init_method_std: float | None = option(
        None,
        "standard deviation of the initial embeddings, of tokens, positions and segments (default:"
        " init-method-std)",
        added=True,
    )
    hidden_dropout: float = option(0.0, "dropout on the embedding and on the output of each sublayer")
    attention_dropout: float = option(0.0, "dropout on attention weights")
    num_experts: int | None = option(
        None,
        "experts of a mixture in place of feed-forward layers; they have no biases (default: no mixture)",
    )
    moe_layer_freq: str = option(
        "1",
        "which layers have experts: N for every N-th, or a list of 0 and 1 for all of them, such as"
        " [0]*3+[1]*24",
    )
    moe_ffn_hidden_size: int | None = option(None, "width of an expert (default: ffn-hidden-size)")
    moe_shared_expert_intermediate_size: int | None = option(
        None, "width of a shared expert that every token goes through (default: none)"
    )
    moe_shared_expert_gate: bool = option(False, "multiply the shared expert's output by a sigmoid gate")
    moe_router_topk: int = option(2, "experts that a token is sent to")
    moe_router_score_function: Literal["softmax", "sigmoid"] = option(
        "softmax", "how the router's logits become weights"
    )
    moe_router_pre_softmax: bool = option(
        False,
        "softmax over all experts before the choice (default: softmax over the chosen experts)",
    )
    moe_router_num_groups: int | None = option(
        None,
        "groups of equal numbers of experts, of which a token is sent only to the best (DeepSeek)",
        added=True,
    )
    moe_router_group_topk: int | None = option(
        None, "groups that a token is sent to: those with the best sums of their best experts", added=True
    )
    moe_router_group_score_topk: int | None = option(
        None,
        "best experts of a group whose scores are added up to that of the group (default: moe-router-topk /"
        " moe-router-group-topk)",
        added=True,
    )
    moe_router_topk_scaling_factor: float | None = option(
        None,
        "multiply the weights of the chosen experts by this (DeepSeek)",
        added=True,
    )
    moe_router_load_balancing_type: Literal[
        "aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"
    ] = option(
        "aux_loss",
        "what --moe-aux-loss-coeff balances: the load within a micro-batch, within each sequence, or within"
        " the global batch so far; sinkhorn: the choice itself is balanced, in training; none: nothing",
        added=True,
    )
    moe_router_enable_expert_bias: bool = option(
        False,
        "auxiliary-loss-free load balancing: a bias on the choice of experts that follows their loads; for"
        " sigmoid",
    )
    moe_router_bias_update_rate: float = option(1e-3, "step size of that bias")
    moe_aux_loss_coeff: float = option(0.0, "weight of the load-balancing loss; 0.01 is a good start")
    moe_z_loss_coeff: float = option(
        0.0, "weight of the z-loss, which keeps the router's logits small; 0.001 is a good start"
    )
    moe_expert_capacity_factor: float | None = option(
        None,
        "in training an expert takes at most this times the mean number of tokens of a micro-batch; the"
        " others are dropped (default: drop none)",
    )
    moe_token_drop_policy: Literal["probs", "position"] = option(
        "probs", "which tokens to drop beyond the capacity: those of the smallest weight, or the last ones"
    )
    mamba_state_dim: int = option(128, "Mamba-2: size of the state of each channel")
    mamba_head_dim: int = option(64, "Mamba-2: channels of a head")
    mamba_num_groups: int = option(
        8,
        "Mamba-2: groups of heads that share the projections B and C; at least as many as tensor-parallel"
        " ranks",
    )
    mamba_num_heads: int | None = option(None, "Mamba-2: heads (default: 2 x hidden-size / mamba-head-dim)")
    retro_add_retriever: bool = option(
        False,
        "gpt: Retro, every third layer also attends to retrieved neighbours; training then needs"
        " --retro-project-dir",
    )
    retro_chunk_length: int = option(
        64, "Retro: tokens of a chunk, as in the database; a neighbour is twice as long"
    )
    retro_num_neighbors: int = option(2, "Retro: neighbours of each chunk that are read")
    retro_encoder_layers: int = option(2, "Retro: layers of the neighbours' encoder")
    retro_encoder_hidden_dropout: float = option(
        0.1, "Retro: dropout of the encoder on the output of each sublayer"
    )
    retro_encoder_attention_dropout: float = option(0.1, "Retro: dropout of the encoder on attention weights")
    vocab_size: int | None = option(None, "tokens in the vocabulary (default: the tokenizer's)")
    make_vocab_size_divisible_by: int = option(128, "rows of the embedding are padded to a multiple of this")

    def __post_init__(self):
        heads, groups = self.num_attention_heads, self.num_query_groups
        sizes = (
            "num_layers",
            "decoder_num_layers",
            "hidden_size",
            "ffn_hidden_size",
            "num_attention_heads",
            "kv_channels",
            "window_size",
            "max_position_embeddings",
            "vocab_size",
            "make_vocab_size_divisible_by",
        )
        check(
            *(
                (
                    getattr(self, n) is None or getattr(self, n) >= 1,
                    f"model.{n} = {getattr(self, n)} must be at least 1",
                )
                for n in sizes
            ),
            *(
                (
                    getattr(self, n) is None or getattr(self, n) <= MOST_SIZE,
                    f"model.{n} = {getattr(self, n)} must be at most {MOST_SIZE:,}",
                )
                for n in (
                    *sizes,
                    "num_query_groups",
                    *MIXTURE_SIZES,
                    *LATENT_SIZES,
                    *MAMBA_SIZES,
                    *RETRO_SIZES,
                )
            ),
            *(
                (
                    getattr(self, n) is None or getattr(self, n) <= MOST_LAYERS,
                    f"model.{n} = {getattr(self, n)} must be at most {MOST_LAYERS:,}",
                )
                for n in COUNTS
            ),
            *(
                (0 <= getattr(self, n) < 1, f"model.{n} = {getattr(self, n)} must be at least 0 and below 1")
                for n in ("hidden_dropout", "attention_dropout")
            ),
            *(
                ((getattr(self, n) or 0) >= 0, f"model.{n} = {getattr(self, n)} must not be negative")
                for n in ("layernorm_epsilon", "init_method_std", "embedding_init_method_std")
            ),
            (
                self.rotary_base > 1,
                f"model.rotary_base = {self.rotary_base} must be above 1: wavelengths grow by powers of it",
            ),
            *(
                (
                    getattr(self, n) is None or getattr(self, n) > 0,
                    f"model.{n} = {getattr(self, n)} must be above 0",
                )
                for n in FACTORS
            ),
            (
                self.rotary_local_base is None or self.rotary_local_base > 1,
                f"model.rotary_local_base = {self.rotary_local_base} must be above 1",
            ),
            *_family_rules(self),
            *_pattern_rules(self),
        )
        check(
            (
                self.kv_channels is not None or self.multi_latent_attention or self.hidden_size % heads == 0,
                (
                    f"model.num_attention_heads = {heads} does not divide model.hidden_size ="
                    f" {self.hidden_size}; use {_divisors(self.hidden_size, heads)}, or give --kv-channels"
                ),
            ),
            (
                groups is None or (groups >= 1 and heads % groups == 0),
                (
                    f"model.num_query_groups = {groups} does not divide model.num_attention_heads = {heads};"
                    f" use {_divisors(heads, groups or 1)}"
                ),
            ),
        )
        check(
            *_variation_rules(self),
            *_latent_rules(self),
            *_position_rules(self),
            *_expert_rules(self),
            *_mamba_rules(self),
            *_retro_rules(self),
            *_prediction_rules(self),
        )


def _resolved(name: str) -> Any:
    """The field of ModelConfig of that name, without a default."""
    return option(help=ModelConfig.__dataclass_fields__[name].metadata["help"])


@configuration(group="model")
class ResolvedModelConfig(ModelConfig):
    """A ModelConfig without open settings, from which models are built. See `resolve`."""

    num_layers: int = _resolved("num_layers")
    ffn_hidden_size: int = _resolved("ffn_hidden_size")
    num_query_groups: int = _resolved("num_query_groups")
    kv_channels: int = _resolved("kv_channels")
    max_position_embeddings: int = _resolved("max_position_embeddings")
    vocab_size: int = _resolved("vocab_size")

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.make_vocab_size_divisible_by) * self.make_vocab_size_divisible_by

    @property
    def windowed(self) -> list[bool]:
        """Whether the attention of each layer has the window."""
        if self.window_size is None:
            return [False] * self.num_layers
        return windowed_layers(self.window_attn_skip_freq, self.num_layers)

    @property
    def mtp_windowed(self) -> bool:
        """Whether attention has the window in the layers of multi-token prediction, which follow the last."""
        return self.window_size is not None and self.window_attn_skip_freq is None

    @property
    def rotary_channels(self) -> int:
        """Channels of a head that rotary positions rotate."""
        if self.multi_latent_attention:
            return self.qk_pos_emb_head_dim
        return int(self.kv_channels * self.rotary_percent)

    @property
    def embedding_std(self) -> float:
        """Initial standard deviation of the embeddings, but not of an output layer with its own weight."""
        given = self.embedding_init_method_std
        return self.init_method_std if given is None else given

    @property
    def residual_std(self) -> float:
        """Initial standard deviation of a matrix that writes to the residual stream: smaller with more
        layers, because their outputs add up (Radford et al. 2019).
        """
        return self.init_method_std / (self.num_layers * (1 if self.hybrid_override_pattern else 2)) ** 0.5

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder of an encoder-decoder."""
        assert self.decoder_num_layers is not None, "resolve sets it for every family that has one"
        return self.decoder_num_layers

    @property
    def expert_size(self) -> int:
        """Width of an expert."""
        assert self.moe_ffn_hidden_size is not None, "resolve sets it for every model that has experts"
        return self.moe_ffn_hidden_size

    @property
    def mamba_heads(self) -> int:
        """Heads of a Mamba layer."""
        assert self.mamba_num_heads is not None, "resolve sets it for every model that has Mamba layers"
        return self.mamba_num_heads


def _family_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    family, takes = config.family, FAMILY_SETTINGS[config.family].takes
    positions = FAMILY_SETTINGS[family].positions
    biencoder = _changed(config, "biencoder_") + _changed(config, "retriever_")
    return [
        (
            config.position_embedding_type in positions,
            f"model.position_embedding_type = {config.position_embedding_type} does not fit model.family"
            f" = {family}; use {' or '.join(positions)}",
        ),
        (
            "window_size" in takes or config.window_size is None,
            "model.window_size limits causal attention to the last tokens, and the attention of"
            f" model.family = {family} is bidirectional; leave it out",
        ),
        (
            "attention_backend" in takes or config.attention_backend in ("auto", "sdpa"),
            f"model.attention_backend = {config.attention_backend} computes causal attention only; leave it"
            f" out for model.family = {family}",
        ),
        (
            "post_norm" in takes or not config.post_norm,
            f"model.post_norm is for {_families('post_norm')}; leave it out for model.family = {family}",
        ),
        (
            "biencoder" in takes or not biencoder,
            f"model.{', model.'.join(biencoder)}: for {_families('biencoder')}, not {family}; leave it out",
        ),
        (
            config.biencoder_projection_dim >= 0,
            f"model.biencoder_projection_dim = {config.biencoder_projection_dim} must not be negative (0:"
            " no projection)",
        ),
        (
            "decoder_num_layers" in takes or config.decoder_num_layers is None,
            f"model.decoder_num_layers is for {_families('decoder_num_layers')}; for {family} give"
            " --num-layers alone",
        ),
        (
            "untie_embeddings_and_output_weights" in takes or not config.untie_embeddings_and_output_weights,
            f"model.untie_embeddings_and_output_weights: the output layer of model.family = {family} is its"
            " embedding; leave it out",
        ),
        (
            config.parallel_norms in (1, 2),
            f"model.parallel_norms = {config.parallel_norms} must be 1 or 2",
        ),
        *(
            (
                field.name in takes or getattr(config, field.name) == field.default,
                f"model.{field.name} is for {_families(field.name)}, not {family}; leave it out",
            )
            for field in dataclasses.fields(ModelConfig)
            if _families(field.name) and field.name not in WITH_REASONS
        ),
    ]


# the settings of FAMILY_SETTINGS for which `_family_rules` has a message of its own
WITH_REASONS = (
    "window_size",
    "attention_backend",
    "post_norm",
    "decoder_num_layers",
    "untie_embeddings_and_output_weights",
)


def _families(setting: str) -> str:
    """`model.family = bert or ict`: the families that take a setting; empty if it is not one of `takes`."""
    names = [name for name, family in FAMILY_SETTINGS.items() if setting in family.takes]
    return f"model.family = {' or '.join(names)}" if names else ""


def _pattern_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    pattern = config.hybrid_override_pattern
    if pattern is None:
        return []
    wrong = next((symbol for symbol in pattern if symbol not in LAYER_SYMBOLS), None)
    return [
        (
            len(pattern) <= MOST_LAYERS,
            f"model.hybrid_override_pattern has {len(pattern):,} symbols; it may have {MOST_LAYERS:,}",
        ),
        (
            pattern != "",
            "model.hybrid_override_pattern is empty; give a symbol for each layer, or leave it out",
        ),
        (
            wrong is None,
            (
                f"model.hybrid_override_pattern has {wrong!r}; use M for Mamba-2, * for attention, - for"
                " feed-forward, E for experts"
            ),
        ),
        (
            config.num_layers in (None, len(pattern)),
            (
                f"model.num_layers = {config.num_layers}, but model.hybrid_override_pattern has"
                f" {len(pattern)} symbols; leave num_layers out"
            ),
        ),
    ]


def _variation_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    """Rules of the settings in VARIATIONS."""
    mistake = None
    try:
        windowed_layers(config.window_attn_skip_freq, config.num_layers)
    except ValueError as error:
        mistake = error
    buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    return [
        (
            4 <= buckets <= 1 << 20 and buckets % 4 == 0,
            f"model.relative_attention_num_buckets = {buckets} must be a multiple of 4, from 4 to {1 << 20}",
        ),
        (
            buckets // 2 < distance <= MOST_SIZE,
            f"model.relative_attention_max_distance = {distance} must be above half of"
            f" model.relative_attention_num_buckets = {buckets}: so many distances have a bucket each",
        ),
        (
            mistake is None,
            f"model.window_attn_skip_freq = {str(config.window_attn_skip_freq)[:200]} {mistake}",
        ),
        (
            config.window_attn_skip_freq is None or config.window_size is not None,
            "model.window_attn_skip_freq says which layers have a window; give --window-size too",
        ),
        (
            config.rotary_local_base is None
            or (config.window_size is not None and config.position_embedding_type == "rope"),
            "model.rotary_local_base is for layers that have a window and rotary positions; give"
            " --window-size and --position-embedding-type rope too",
        ),
        (
            config.qk_layernorm_scope == "head"
            or (config.qk_layernorm and config.normalization == "RMSNorm"),
            "model.qk_layernorm_scope = all_heads needs --qk-layernorm and --normalization RMSNorm",
        ),
    ]


def _latent_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    """Rules of multi-latent attention."""
    if not config.multi_latent_attention:
        names = (*LATENT_SIZES, "latent_layernorm_epsilon")
        changed = [n for n in names if getattr(config, n) != ModelConfig.__dataclass_fields__[n].default]
        return [
            (
                not changed,
                f"model.{', model.'.join(changed)}: there is no latent to set; give --multi-latent-attention"
                " too, or leave this out",
            )
        ]
    query, heads = config.qk_head_dim + config.qk_pos_emb_head_dim, config.num_attention_heads
    epsilon = config.latent_layernorm_epsilon
    return [
        *(
            (
                getattr(config, n) is None or getattr(config, n) >= 1,
                f"model.{n} = {getattr(config, n)} must be at least 1",
            )
            for n in LATENT_SIZES
        ),
        (
            config.position_embedding_type == "rope",
            "model.multi_latent_attention rotates its positions; give --position-embedding-type rope too",
        ),
        (
            not config.rotary_interleaved,
            "model.rotary_interleaved: model.multi_latent_attention rotates neighbouring channels anyway;"
            " leave it out",
        ),
        (
            config.rotary_percent == 1,
            f"model.rotary_percent = {config.rotary_percent}: model.qk_pos_emb_head_dim says which channels"
            " are rotated; leave it out",
        ),
        (
            config.num_query_groups in (None, heads),
            f"model.num_query_groups = {config.num_query_groups}: all heads of model.multi_latent_attention"
            " read one latent; leave it out",
        ),
        (
            config.kv_channels in (None, query),
            f"model.kv_channels = {config.kv_channels}: the channels of model.multi_latent_attention are"
            f" model.qk_head_dim + model.qk_pos_emb_head_dim = {query}; leave it out",
        ),
        (
            not config.add_qkv_bias,
            "model.add_qkv_bias: model.multi_latent_attention has no such projection; leave it out, or give"
            " --add-attention-bias",
        ),
        (
            config.qk_layernorm_scope == "head",
            f"model.qk_layernorm_scope = {config.qk_layernorm_scope}: model.multi_latent_attention normalises"
            " its latents; leave it out",
        ),
        (
            epsilon is None or (epsilon >= 0 and config.qk_layernorm),
            f"model.latent_layernorm_epsilon = {epsilon} must not be negative, and needs --qk-layernorm",
        ),
    ]


def _position_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    if config.position_embedding_type != "rope":
        return [
            (
                not config.rotary_interleaved,
                "model.rotary_interleaved is for model.position_embedding_type = rope; give that too, or"
                " leave it out",
            ),
            (
                config.rotary_percent == 1,
                "model.rotary_percent is for model.position_embedding_type = rope; give that too, or leave"
                " it out",
            ),
            (
                config.rope_scaling is None,
                (
                    "model.rope_scaling is for model.position_embedding_type = rope; give that too, or leave"
                    " it out"
                ),
            ),
        ]
    channels = config.kv_channels or config.hidden_size // config.num_attention_heads
    rotated = int(channels * config.rotary_percent)
    remedy = "--num-attention-heads, --kv-channels or --rotary-percent"
    if config.multi_latent_attention:
        rotated, remedy = config.qk_pos_emb_head_dim, "--qk-pos-emb-head-dim"
    mistake = scaling_mistake(config.rope_scaling) if config.rope_scaling is not None else None
    return [
        (
            0 < config.rotary_percent <= 1,
            f"model.rotary_percent = {config.rotary_percent} must be above 0 and at most 1",
        ),
        (
            rotated % 2 == 0 and (rotated > 0 or not 0 < config.rotary_percent <= 1),
            "model.position_embedding_type = rope needs an even number of rotated channels a head, not"
            f" {rotated}; change {remedy}",
        ),
        (mistake is None, f"model.rope_scaling {mistake}"),
        *(
            (
                mistake is not None or len(factors) == rotated // 2,
                f"model.rope_scaling has a {name} of {len(factors)} numbers, and a head has"
                f" {rotated // 2} pairs of rotated channels; give a number for each pair",
            )
            for name in ("short_factor", "long_factor")
            for factors in [(config.rope_scaling or {}).get(name)]
            if isinstance(factors, list)
        ),
        (
            (config.rope_scaling or {}).get("rope_type") != "dynamic" or rotated > 2,
            f"model.rope_scaling has rope_type dynamic, which needs more than {rotated} rotated channels a"
            " head; change --num-attention-heads or --kv-channels",
        ),
    ]


def _divisors(number: int, near: int) -> str:
    """`4, 8 or 16`: the divisors of a number that are nearest to the given one."""
    # Divisors come in pairs, one of which is at most the root: a width of 10^9 takes 31,623 steps.
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    every = {*small, *(number // d for d in small)}
    found = sorted(sorted(every, key=lambda d: (abs(d - near), d))[:4])
    return " or ".join(
        [", ".join(map(str, found[:-1])), str(found[-1])] if len(found) > 1 else map(str, found)
    )


def _expert_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    count, topk, pattern = config.num_experts, config.moe_router_topk, config.hybrid_override_pattern
    if count is None:
        changed = _changed(config, "moe_")
        return [
            (
                not changed,
                (
                    f"model.{', model.'.join(changed)}: there are no experts to set; give --num-experts too,"
                    " or leave this out"
                ),
            ),
            (
                pattern is None or "E" not in pattern,
                (
                    "model.hybrid_override_pattern has layers E of experts; give --num-experts, or use - for"
                    " feed-forward layers"
                ),
            ),
        ]
    coefficients = ("moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_router_bias_update_rate")
    groups, best, kind = (
        config.moe_router_num_groups,
        config.moe_router_group_topk,
        config.moe_router_load_balancing_type,
    )
    scored = config.moe_router_group_score_topk
    softmax, factor = config.moe_router_score_function == "softmax", config.moe_expert_capacity_factor
    mistake = None
    try:
        expert_layers(config.moe_layer_freq, config.num_layers)
    except ValueError as error:
        mistake = error
    return [
        *(
            (
                getattr(config, n) is None or getattr(config, n) >= 1,
                f"model.{n} = {getattr(config, n)} must be at least 1",
            )
            for n in MIXTURE_SIZES
        ),
        *(
            (getattr(config, n) >= 0, f"model.{n} = {getattr(config, n)} must not be negative")
            for n in coefficients
        ),
        (
            topk <= count,
            f"model.moe_router_topk = {topk} is more than model.num_experts = {count}; send a token to fewer",
        ),
        (
            pattern is None or "E" in pattern,
            (
                "model.num_experts is given, but model.hybrid_override_pattern has no layer E for them; put E"
                " in the place of some -"
            ),
        ),
        (
            pattern is None or config.moe_layer_freq == "1",
            (
                "model.moe_layer_freq: the E of model.hybrid_override_pattern say which layers have experts;"
                " leave it out"
            ),
        ),
        (mistake is None, f"model.moe_layer_freq = {config.moe_layer_freq[:200]} {mistake}"),
        (
            softmax or not config.moe_router_pre_softmax,
            (
                "model.moe_router_pre_softmax is for model.moe_router_score_function = softmax; leave it out"
                " for sigmoid"
            ),
        ),
        (
            not (softmax and topk == 1 and count > 1 and not config.moe_router_pre_softmax),
            (
                "model.moe_router_topk = 1: a softmax over the one chosen expert is always 1 and teaches the"
                " router nothing; give --moe-router-pre-softmax"
            ),
        ),
        (
            not (softmax and config.moe_router_enable_expert_bias),
            (
                "model.moe_router_enable_expert_bias adds to scores between 0 and 1; give"
                " --moe-router-score-function sigmoid with it"
            ),
        ),
        (
            (groups is None) == (best is None),
            "model.moe_router_num_groups and model.moe_router_group_topk belong together; give both or"
            " neither",
        ),
        (
            scored is None or (groups is not None and 1 <= scored <= count // max(groups, 1)),
            f"model.moe_router_group_score_topk = {scored} counts experts of one of"
            " model.moe_router_num_groups; use a number from 1 to those in a group",
        ),
        (
            groups is None or (groups >= 1 and count % groups == 0),
            f"model.moe_router_num_groups = {groups} does not divide model.num_experts = {count}; use a"
            " number that does",
        ),
        (
            not groups
            or not best
            or (1 <= best <= groups and topk >= best and topk <= best * count // groups),
            f"model.moe_router_group_topk = {best} must be at most model.moe_router_num_groups = {groups} and"
            f" model.moe_router_topk = {topk}, and its groups must have that many experts",
        ),
        (
            config.moe_router_topk_scaling_factor is None or config.moe_router_topk_scaling_factor > 0,
            f"model.moe_router_topk_scaling_factor = {config.moe_router_topk_scaling_factor} must be above 0",
        ),
        (
            kind not in ("sinkhorn", "none") or config.moe_aux_loss_coeff == 0,
            f"model.moe_router_load_balancing_type = {kind} has no loss; leave --moe-aux-loss-coeff out",
        ),
        (
            kind != "sinkhorn" or (not softmax if topk == 1 else config.moe_router_pre_softmax),
            "model.moe_router_load_balancing_type = sinkhorn needs --moe-router-score-function sigmoid for"
            " one expert a token, and --moe-router-pre-softmax for more",
        ),
        (
            kind != "sinkhorn" or not (groups or config.moe_router_enable_expert_bias),
            "model.moe_router_load_balancing_type = sinkhorn balances the choice itself; leave"
            " --moe-router-num-groups and --moe-router-enable-expert-bias out",
        ),
        (
            factor is None or factor > 0,
            f"model.moe_expert_capacity_factor = {factor} must be above 0; leave it out to drop no tokens",
        ),
        (
            factor is not None or config.moe_token_drop_policy == "probs",
            "model.moe_token_drop_policy needs --moe-expert-capacity-factor: without it no token is dropped",
        ),
        (
            not config.moe_shared_expert_gate or config.moe_shared_expert_intermediate_size is not None,
            (
                "model.moe_shared_expert_gate needs --moe-shared-expert-intermediate-size: the width of the"
                " expert that it weighs"
            ),
        ),
    ]


def _mamba_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    if "M" not in (config.hybrid_override_pattern or ""):
        changed = _changed(config, "mamba_")
        return [
            (
                not changed,
                (
                    f"model.{', model.'.join(changed)}: there are no Mamba layers to set; give a"
                    " --hybrid-override-pattern with M too, or leave this out"
                ),
            )
        ]
    channels, groups = config.mamba_head_dim, config.mamba_num_groups
    sizes = [(n, getattr(config, n)) for n in MAMBA_SIZES]
    wrong = [(n, value) for n, value in sizes if value is not None and value < 1]
    if wrong:
        return [(False, f"model.{n} = {value} must be at least 1") for n, value in wrong]
    heads = config.mamba_num_heads or 2 * config.hidden_size // channels
    return [
        (
            config.mamba_num_heads is not None or 2 * config.hidden_size % channels == 0,
            (
                f"model.mamba_head_dim = {channels} does not divide twice model.hidden_size ="
                f" {config.hidden_size}; use {_divisors(2 * config.hidden_size, channels)}, or give"
                " --mamba-num-heads"
            ),
        ),
        (
            heads % groups == 0,
            (
                f"model.mamba_num_groups = {groups} does not divide the {heads} heads of a Mamba layer; use"
                f" {_divisors(heads, groups)}"
            ),
        ),
    ]


def _retro_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    if not config.retro_add_retriever:
        changed = _changed(config, "retro_")
        return [
            (
                not changed,
                (
                    f"model.{', model.'.join(changed)}: there is nothing retrieved to read; give"
                    " --retro-add-retriever too, or leave this out"
                ),
            )
        ]
    dropouts = ("retro_encoder_hidden_dropout", "retro_encoder_attention_dropout")
    return [
        *(
            (
                getattr(config, n) == ModelConfig.__dataclass_fields__[n].default,
                f"model.{n} = {getattr(config, n)}: Retro's layers do not have it; leave it out, or leave"
                " out --retro-add-retriever",
            )
            for n in NOT_FOR_RETRO
        ),
        *(
            (getattr(config, n) >= 1, f"model.{n} = {getattr(config, n)} must be at least 1")
            for n in RETRO_SIZES
        ),
        *(
            (0 <= getattr(config, n) < 1, f"model.{n} = {getattr(config, n)} must be at least 0 and below 1")
            for n in dropouts
        ),
        (
            config.position_embedding_type != "alibi",
            "model.position_embedding_type = alibi: attention to neighbours has no distances; use rope, or"
            " leave out --retro-add-retriever",
        ),
        (
            config.hybrid_override_pattern is None,
            (
                "model.retro_add_retriever: which layers read neighbours follows from their number; leave"
                " --hybrid-override-pattern out"
            ),
        ),
        (
            config.num_layers is None or bool(retro_layers(config.num_layers)),
            (
                f"model.num_layers = {config.num_layers}, but Retro's layers begin with the"
                f" {FIRST_RETRO_LAYER}th; use {FIRST_RETRO_LAYER} or more"
            ),
        ),
    ]


def _prediction_rules(config: ModelConfig) -> list[tuple[bool, str]]:
    """Rules of multi-token prediction."""
    depths, factor = config.mtp_num_layers, config.mtp_loss_scaling_factor
    name = f"model.mtp_num_layers = {depths}"
    if depths < 1:
        return [
            (depths == 0, f"{name} must not be negative"),
            (
                depths < 0 or factor == ModelConfig.__dataclass_fields__["mtp_loss_scaling_factor"].default,
                f"model.mtp_loss_scaling_factor = {factor} is of multi-token prediction; give"
                " --mtp-num-layers too, or leave it out",
            ),
        ]
    return [
        (factor >= 0, f"model.mtp_loss_scaling_factor = {factor} must not be negative"),
        (
            config.hybrid_override_pattern is None,
            f"{name}: model.hybrid_override_pattern says no layer for it; leave one of them out",
        ),
        (
            not config.retro_add_retriever,
            f"{name}: its layers read no neighbours; leave it out, or --retro-add-retriever",
        ),
        (
            config.window_attn_skip_freq is None,
            f"{name}: model.window_attn_skip_freq does not say whether its layers have the window; leave one"
            " of them out",
        ),
    ]


# settings of GPTs that the encoder of neighbours and the layers that read them do not have
NOT_FOR_RETRO = (
    "sublayer_norms", "embedding_multiplier", "residual_multiplier", "qk_layernorm_scope",
    "attn_logit_softcapping", "softmax_scale", "add_attention_bias", "multi_latent_attention",
    "embed_layernorm",
)  # fmt: skip
FIRST_RETRO_LAYER, FIRST_OF_MANY, MANY = 6, 9, 15


def retro_layers(num_layers: int) -> range:
    """The layers that read neighbours, from 0: every third from the 6th, of more than 15 from the 9th."""
    return range((FIRST_RETRO_LAYER if num_layers <= MANY else FIRST_OF_MANY) - 1, num_layers, 3)


def _changed(config: ModelConfig, prefix: str) -> list[str]:
    """The settings with this prefix that differ from their defaults."""
    return [
        f.name
        for f in dataclasses.fields(config)
        if f.name.startswith(prefix) and getattr(config, f.name) != f.default
    ]


def expert_layers(frequency: str, num_layers: int | None) -> list[bool]:
    """Which layers have experts: `moe_layer_freq` as Megatron-LM reads it.

    num_layers: None where it is not known yet; the length of a list is then not checked. Raises ValueError,
    whose text continues the message.
    """
    if re.fullmatch("0*[1-9][0-9]{0,18}", frequency):
        return [layer % int(frequency) == 0 for layer in range(num_layers or 0)]
    return _listed_layers(frequency, num_layers)


def windowed_layers(frequency: str | None, num_layers: int | None) -> list[bool]:
    """Which layers have the window: `window_attn_skip_freq` as Megatron-LM reads it. See expert_layers."""
    if frequency is None:
        return [True] * (num_layers or 0)
    if re.fullmatch("0*[1-9][0-9]{0,18}", frequency):
        return [(layer + 1) % int(frequency) != 0 for layer in range(num_layers or 0)]
    return _listed_layers(frequency, num_layers)


def _listed_layers(listed: str, num_layers: int | None) -> list[bool]:
    """The value of a list of 0 and 1 for every layer; see expert_layers."""
    try:
        if len(listed) > 10 * MOST_LAYERS:
            raise ValueError
        flags = _flags(ast.parse(listed.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            "must be a whole number from 1, or a list of 0 and 1, such as [0,1]*12 or [0]*3+[1]*24"
        ) from None
    if len(flags) > MOST_LAYERS:
        raise ValueError(f"is a list of more than {MOST_LAYERS:,}")
    if num_layers is not None and len(flags) != num_layers:
        raise ValueError(
            f"is a list of {len(flags)}, but there are {num_layers} layers; say 0 or 1 for each of them"
        )
    return flags


def _flags(node: ast.expr) -> list[bool]:
    match node:
        case ast.List(elts=elements) if all(
            isinstance(e, ast.Constant) and e.value in (0, 1) for e in elements
        ):
            return [bool(e.value) for e in elements if isinstance(e, ast.Constant)]
        case ast.BinOp(op=ast.Add()):
            return (_flags(node.left) + _flags(node.right))[: MOST_LAYERS + 1]
        case (
            ast.BinOp(op=ast.Mult(), left=ast.Constant(value=int(times)), right=part)
            | ast.BinOp(op=ast.Mult(), left=part, right=ast.Constant(value=int(times)))
        ):
            flags = _flags(part)
            return flags * min(times, MOST_LAYERS // max(1, len(flags)) + 1)
    raise ValueError


def resolve(config: ModelConfig, *, vocab_size: int, seq_length: int) -> ResolvedModelConfig:
    """The configuration without open settings. vocab_size, seq_length: of the tokenizer and the data."""
    gated = config.hidden_size * 8 // 3 // 64 * 64 or 64
    ffn_hidden_size = config.ffn_hidden_size or (
        gated if config.activation in GATED else 4 * config.hidden_size
    )
    mamba = "M" in (config.hybrid_override_pattern or "")
    decoder = "decoder_num_layers" in FAMILY_SETTINGS[config.family].takes
    num_layers = config.num_layers or len(config.hybrid_override_pattern or "") or 12
    channels = config.kv_channels or config.hidden_size // config.num_attention_heads
    if config.multi_latent_attention:
        channels = config.qk_head_dim + config.qk_pos_emb_head_dim
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if config.latent_layernorm_epsilon == config.layernorm_epsilon:
        settings["latent_layernorm_epsilon"] = None
    settings |= {
        "num_layers": num_layers,
        "decoder_num_layers": (config.decoder_num_layers or num_layers) if decoder else None,
        "ffn_hidden_size": ffn_hidden_size,
        "num_query_groups": config.num_query_groups or config.num_attention_heads,
        "kv_channels": channels,
        "max_position_embeddings": config.max_position_embeddings or seq_length,
        "moe_ffn_hidden_size": (config.moe_ffn_hidden_size or ffn_hidden_size)
        if config.num_experts
        else None,
        "mamba_num_heads": config.mamba_num_heads
        or (2 * config.hidden_size // config.mamba_head_dim if mamba else None),
        "vocab_size": config.vocab_size or vocab_size,
    }
    return ResolvedModelConfig(**settings)
