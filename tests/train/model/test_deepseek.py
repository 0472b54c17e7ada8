"""DeepSeek V2 and V3, compared with transformers: logits, gradients, text; and what is refused.

tests/train/checkpoint/test_huggingface.py has their directories, test_nothing_unused.py every key.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import (
    DEEPSEEKS,
    MLA,
    TOLERANCE,
    T,
    V,
    assert_near,
    our_logits,
    random_model,
    their_logits,
    write,
)
from mt.tests.train.model.small_models import assert_cached_tokens_are_those_of_one_pass
from mt.train.checkpoint.architectures import weights_to_hf
from mt.train.checkpoint.commands import ConvertConfig, convert
from mt.train.checkpoint.hf_settings import config_from_hf, config_to_hf
from mt.train.checkpoint.huggingface import SafetensorsDirectory
from mt.train.checkpoint.open import open_checkpoint
from mt.train.model.family import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", DEEPSEEKS)
def test_cached_tokens_are_those_of_one_pass(name):
    assert_cached_tokens_are_those_of_one_pass(
        build_model(config_from_hf(DEEPSEEKS[name].to_dict(), "config.json"))
    )


@pytest.mark.parametrize("name", DEEPSEEKS)
def test_logits_gradients_and_text_are_those_of_transformers(name, tmp_path):
    theirs = random_model(name)
    checkpoint = open_checkpoint(write(theirs, tmp_path))
    ours = checkpoint.load_model()
    assert_near(our_logits(ours), their_logits(theirs))
    tokens = torch.randint(3, V, (3, T + 1), generator=torch.Generator().manual_seed(3))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    F.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    ours.requires_grad_().train().loss(inputs, labels, torch.ones(labels.shape)).backward()
    found = dict(
        weights_to_hf(
            theirs.config.model_type, [(n, p.grad) for n, p in ours.named_parameters()], ours.config
        )
    )
    # transformers joins the experts in memory, and writes them one by one
    gradients = copy.deepcopy(theirs)
    with torch.no_grad():
        for parameter, own in zip(gradients.parameters(), theirs.parameters(), strict=True):
            parameter.copy_(own.grad)
    gradients.save_pretrained(tmp_path / "gradients")
    expected = SafetensorsDirectory(tmp_path / "gradients")
    names = [n for n in expected.files if not n.endswith("e_score_correction_bias")]
    assert found.keys() == set(names)
    whole = torch.stack([expected.read(n).norm() for n in names]).norm()
    for n in names:
        gradient = expected.read(n)
        assert (found[n] - gradient).norm() <= TOLERANCE * max(gradient.norm(), 1e-3 * whole), n

    # of so many tokens keys and values are computed; single tokens attend to the latents
    prompt = tokens[:1, :17]
    attention = ours.layers[0].mixer
    assert attention.eval()._absorbs(1)
    assert not attention._absorbs(17)
    text = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    ours.eval()
    cache, row, written = ours.new_cache(1, 29), prompt, prompt
    for _ in range(12):
        with torch.no_grad():
            row = ours.logits(ours(row, cache=cache)[:, -1:]).argmax(-1)
        written = torch.cat([written, row], dim=1)
    assert torch.equal(written, text)


def test_the_cache_holds_latents():
    """Section 2.1.2: d_c + d_R numbers a token, here 12 + 4, whatever the number of heads."""
    model = build_model(config_from_hf(DEEPSEEKS["deepseek_v3"].to_dict(), "config.json"))
    cached = [layer.keys.numel() + layer.values.numel() for layer in model.new_cache(2, 10).layers]
    assert cached == [2 * 10 * (12 + 4)] * 3


LITE = {  # the config.json of DeepSeek-V2-Lite
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def test_a_published_file_has_the_parameters_of_its_model():
    """15.7 billion, https://huggingface.co/deepseek-ai/DeepSeek-V2-Lite; and by transformers."""
    config = config_from_hf(LITE, "config.json")
    with torch.device("meta"):
        ours = sum(p.numel() for p in build_model(config).parameters())
        theirs = transformers.DeepseekV2ForCausalLM(transformers.DeepseekV2Config(**LITE))
    assert ours == sum(p.numel() for p in theirs.parameters())
    assert round(ours / 1e9, 1) == 15.7


@pytest.mark.parametrize("format", ["hf", "torch", "megatron_torch_dist"])
def test_the_bias_of_the_router_stays_in_float32(format, tmp_path):
    theirs = random_model("deepseek_v3 without groups")
    write(theirs, tmp_path / "hf")
    settings = {"source": str(tmp_path / "hf"), "output": str(tmp_path / "out"), "format": format}
    convert(ConvertConfig(**settings, dtype="bf16"))

    def read(folder, name, shape):
        return open_checkpoint(tmp_path / folder).read_weight(f"layers.1.ffn.{name}", torch.Size(shape))

    for name, shape, same in (("router.expert_bias", (8,), True), ("router.weight", (8, 32), False)):
        assert torch.equal(read("out", name, shape), read("hf", name, shape)) == same, name


@pytest.mark.parametrize("name", DEEPSEEKS)
def test_settings_go_out_and_in_again(name):
    config = config_from_hf(DEEPSEEKS[name].to_dict(), "config.json")
    architecture, written = config_to_hf(config)
    assert architecture == name.split()[0]
    assert config_from_hf(written, "config.json") == config


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'; only 'greedy' and"),
        ("deepseek_v2", {"num_experts_per_tok": None}, "num_experts_per_tok = None: must be a whole number"),
        ("deepseek_v2", {"n_group": None}, "has no n_group"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True; only False can be loaded"),
        ("deepseek_v3", {"norm_topk_prob": False}, "norm_topk_prob is False with num_experts_per_tok = 3"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave is False; only True can be loaded"),
        (
            "deepseek_v3",
            {"head_dim": 6},
            "head_dim is 6, and qk_rope_head_dim and qk_nope_head_dim make it 4",
        ),
        ("deepseek_v3", {"num_key_value_heads": 2}, "model.num_query_groups = 2: all heads of"),
        (
            "deepseek_v3",
            {"qk_rope_head_dim": 3, "head_dim": 3, "qk_head_dim": 9},
            "change --qk-pos-emb-head-dim",
        ),
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "the weights are quantised"),
    ],
)
def test_what_is_not_implemented_is_refused(name, change, message):
    with pytest.raises(UserError) as refused:
        config_from_hf({**DEEPSEEKS[name].to_dict(), **change}, "config.json")
    assert str(refused.value).startswith("config.json: ")
    assert message in str(refused.value)


def test_layers_that_predict_later_tokens_are_left_out(tmp_path):
    """DeepSeek-V3's files have them after the last layer; transformers does not run them either."""
    theirs = random_model("deepseek_v3")
    write(theirs, tmp_path)
    from safetensors.torch import load_file, save_file

    tensors, more = load_file(tmp_path / "model.safetensors"), MLA["num_hidden_layers"]
    extra = {
        f"model.layers.{more}.{n}.weight": torch.ones(32) for n in ("enorm", "hnorm", "shared_head.norm")
    }
    save_file({**tensors, **extra}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"holds model\.layers\.3\.enorm\.weight, which no deepseek_v3"):
        open_checkpoint(tmp_path)
    extra[f"model.layers.{more}.eh_proj.weight"] = torch.ones(32, 64)
    save_file({**tensors, **extra}, tmp_path / "model.safetensors", {"format": "pt"})
    assert_near(our_logits(open_checkpoint(tmp_path).load_model()), their_logits(theirs))
