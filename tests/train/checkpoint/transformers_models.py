"""Small models of transformers, their tokenizer, and comparisons of our models with them."""

import copy
import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

V, T = 61, 24

TOLERANCE = 1e-5

# model_type -> (name in transformers 5, name in files) of weights that it renames on the way
IN_FILES = {"gpt_neox": ("lm_head.", "embed_out.")}

TEXT = "w5 w17 w3 w40 w5"

COMMON = {
    "attn_implementation": "eager",
    "initializer_range": 0.2,
    "vocab_size": V,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

GPT2 = {**COMMON, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}

LLAMA = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

T5 = {
    "vocab_size": V,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
    "initializer_factor": 2.0,
}

BERT = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}

MAMBA = {k: v for k, v in COMMON.items() if k != "attn_implementation"} | {
    "num_heads": 4,
    "head_dim": 16,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "n_groups": 2,
    "chunk_size": 8,
}

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 5.0, 9.0],
}

NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
}

BLOOM = {k: v for k, v in COMMON.items() if k != "attn_implementation"} | {
    "hidden_size": 48,
    "n_layer": 2,
    "n_head": 6,
}

FALCON = {k: v for k, v in NEOX.items() if k not in ("intermediate_size", "rope_parameters")}

DECODERS = {
    "gpt2": transformers.GPT2Config(**GPT2),
    "gpt_bigcode": transformers.GPTBigCodeConfig(**GPT2),
    "gpt_bigcode with a key for every query": transformers.GPTBigCodeConfig(**GPT2, multi_query=False),
    "llama": transformers.LlamaConfig(**LLAMA),
    "llama with positions divided by 4": transformers.LlamaConfig(
        **LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    ),
    "llama 3.1": transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3, tie_word_embeddings=True),
    "llama with a base that grows": transformers.LlamaConfig(
        **{**LLAMA, "max_position_embeddings": 16},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0},
    ),
    "llama with yarn": transformers.LlamaConfig(**LLAMA, rope_parameters=YARN),
    "mistral": transformers.MistralConfig(**LLAMA, sliding_window=7),
    "gpt_neox": transformers.GPTNeoXConfig(**NEOX),
    "gpt_neox with one embedding": transformers.GPTNeoXConfig(**NEOX, tie_word_embeddings=True),
    "falcon": transformers.FalconConfig(**FALCON),
    "falcon with a key for every query": transformers.FalconConfig(**FALCON, multi_query=False, bias=True),
    "falcon 40b": transformers.FalconConfig(
        **FALCON, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=48
    ),
    "falcon 2 11b": transformers.FalconConfig(
        **FALCON,
        new_decoder_architecture=True,
        num_kv_heads=2,
        num_ln_in_parallel_attn=1,
        tie_word_embeddings=False,
    ),
    "bloom": transformers.BloomConfig(**BLOOM),
    "bloom with an output layer": transformers.BloomConfig(
        **{**BLOOM, "n_head": 4}, tie_word_embeddings=False
    ),
    "llama with biases in attention": transformers.LlamaConfig(**LLAMA, attention_bias=True),
    "llama with biases": transformers.LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True),
    "gemma": transformers.GemmaConfig(**LLAMA, head_dim=12),
    "gemma2": transformers.Gemma2Config(
        **LLAMA,
        head_dim=8,
        sliding_window=5,
        query_pre_attn_scalar=11,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma2 without limits": transformers.Gemma2Config(
        **LLAMA, head_dim=8, sliding_window=5, attn_logit_softcapping=None, final_logit_softcapping=None
    ),
    "gemma3_text": transformers.Gemma3TextConfig(
        **{**LLAMA, "num_hidden_layers": 3},
        head_dim=8,
        sliding_window=5,
        sliding_window_pattern=3,
        query_pre_attn_scalar=11,
    ),
    "gemma3_text with scaled positions": transformers.Gemma3TextConfig(
        **LLAMA,
        head_dim=8,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
        tie_word_embeddings=False,
    ),
    "olmo2": transformers.Olmo2Config(**LLAMA),
    "phi3": transformers.Phi3Config(
        **{**LLAMA, "max_position_embeddings": 64},
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        sliding_window=7,
    ),
    "phi3 with longrope, short": transformers.Phi3Config(
        **LLAMA, original_max_position_embeddings=32, rope_parameters=LONGROPE
    ),
    "phi3 with longrope, long": transformers.Phi3Config(
        **LLAMA, original_max_position_embeddings=16, rope_parameters=LONGROPE
    ),
    "starcoder2": transformers.Starcoder2Config(**LLAMA, sliding_window=7),
    "starcoder2 without biases": transformers.Starcoder2Config(
        **LLAMA, use_bias=False, tie_word_embeddings=False
    ),
    "granite": transformers.GraniteConfig(
        **LLAMA,
        embedding_multiplier=3.0,
        residual_multiplier=0.3,
        logits_scaling=4.0,
        attention_multiplier=0.2,
    ),
    "qwen2 with windows in its last layers": transformers.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3 with biases": transformers.Qwen3Config(**LLAMA, head_dim=16, attention_bias=True),
    "qwen2": transformers.Qwen2Config(**LLAMA),
    "qwen3": transformers.Qwen3Config(**LLAMA, head_dim=16),
}

MLA = {
    **{k: v for k, v in LLAMA.items() if k != "num_key_value_heads"},
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}

DEEPSEEK_YARN = {**YARN, "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 0.9, "beta_fast": 16}

DEEPSEEKS = {
    "deepseek_v2": transformers.DeepseekV2Config(
        **{**MLA, "num_experts_per_tok": 4},
        n_group=4,
        topk_group=2,
        topk_method="group_limited_greedy",
        rope_parameters=DEEPSEEK_YARN,
    ),
    "deepseek_v2 without a latent of queries": transformers.DeepseekV2Config(
        **{**MLA, "q_lora_rank": None, "rms_norm_eps": 1e-3}, attention_bias=True
    ),
    "deepseek_v3": transformers.DeepseekV3Config(
        **MLA, n_group=4, topk_group=3, rope_parameters=DEEPSEEK_YARN
    ),
    "deepseek_v3 without groups": transformers.DeepseekV3Config(
        **{**MLA, "first_k_dense_replace": 0, "num_experts_per_tok": 2}, n_group=1, topk_group=1
    ),
}

# Models that go through directories and back: of every `model_type`, those of DECODERS under its bare name.
# Each model owns its configuration: save_pretrained writes the dtype of the weights into it.
MODELS = {
    **{
        name: lambda config=config: transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
        for name, config in DECODERS.items()
        if name == config.model_type
    },
    "llama 3.2": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3, tie_word_embeddings=True)
    ),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**LLAMA, num_local_experts=4)
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig(
            **LLAMA, **EXPERTS, shared_expert_intermediate_size=8, mlp_only_layers=[0]
        )
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(**LLAMA, **EXPERTS, head_dim=16, norm_topk_prob=True)
    ),
    **{
        name: lambda config=config: transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config))
        for name, config in DEEPSEEKS.items()
    },
    "mamba2": lambda: transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**MAMBA)),
    "bert": lambda: transformers.BertForPreTraining(
        transformers.BertConfig(**BERT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, feed_forward_proj="relu")
    ),
    "t5 with other buckets": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, relative_attention_num_buckets=8, relative_attention_max_distance=15)
    ),
    "t5 1.1": lambda: untied_t5(),
    "mt5": lambda: untied_t5(transformers.MT5ForConditionalGeneration, transformers.MT5Config),
}


def untied_t5(kind=transformers.T5ForConditionalGeneration, settings=transformers.T5Config):
    """T5 v1.1, or mT5, with an lm_head of its own; a new model of transformers is tied."""
    model = kind(settings(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False))
    model.lm_head.weight = torch.nn.Parameter(torch.randn(V, T5["d_model"]))
    return model


def random_model(name):
    """A random model of transformers. Norm weights and biases are random too, not 1 and 0."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1, 0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0, 0.1)
    return model


def write_tokenizer(folder: Path) -> None:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, V)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))


def write(model, folder: Path, **how) -> Path:
    model.save_pretrained(folder, **how)
    write_tokenizer(folder)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def random_tokens(shape=(3, T), seed=1):
    return torch.randint(3, V, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def their_logits(model):
    tokens = random_tokens()
    if model.config.model_type in ("t5", "mt5"):
        return model(input_ids=tokens, decoder_input_ids=random_tokens((3, 9), seed=2)).logits
    out = model(input_ids=tokens)
    return out.prediction_logits if model.config.model_type == "bert" else out.logits


@torch.no_grad()
def our_logits(model):
    tokens = random_tokens()
    hidden = model(random_tokens((3, 9), seed=2), tokens) if model.config.family == "t5" else model(tokens)
    return model.logits(hidden)[..., :V]


def assert_near(found, expected):
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def assert_same_weights(found, expected):
    found_weights = dict(found.named_parameters())
    assert found_weights.keys() == dict(expected.named_parameters()).keys()
    assert all(torch.equal(found_weights[n], p) for n, p in expected.named_parameters())
