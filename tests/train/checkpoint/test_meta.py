"""Meta's files of Llama: the weights of a model of transformers, renamed and divided by hand."""

import base64
import json

import pytest
import tiktoken
import torch
import transformers

from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import LLAMA, assert_near, our_logits, their_logits
from mt.train.checkpoint.commands import ConvertConfig, convert
from mt.train.checkpoint.meta import MetaCheckpoint
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
PARAMS = {
    "dim": 32,
    "multiple_of": 32,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_layers": 2,
    "norm_eps": 1e-6,
    "vocab_size": 61,
}
LAYER = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}
TOP = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
# the pattern of Meta's llama3/tokenizer.py
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
RANKS = {bytes([b]): i for i, b in enumerate(sorted(range(256), key=lambda b: (b != 33, b)))}
for token in (b"he", b"ll", b"hell", b"o ", b"hello", b" w", b"12", b"123"):
    RANKS[token] = len(RANKS)


@pytest.fixture(scope="module")
def models():
    """{version: a random Llama of transformers}"""
    made = {}
    for version, rope in {
        2: {"rope_type": "default", "rope_theta": 10000.0},
        3: {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }.items():
        torch.manual_seed(version)
        shape = {"intermediate_size": 96, "max_position_embeddings": 131072, "tie_word_embeddings": False}
        made[version] = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**{**LLAMA, **shape}, rope_parameters=rope)
        ).eval()
        for parameter in made[version].parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1, 0.3)
    return made


def write_meta(model, folder, *, parts=1, embedding=0, **params):
    """A model of transformers as Meta writes it. embedding: the dimension along which ranks share it."""
    folder.mkdir()
    ranks = [{"rope.freqs": torch.ones(4)} for _ in range(parts)]
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module.startswith("model.layers."):
            number, module = module.removeprefix("model.layers.").split(".", 1)
            theirs = f"layers.{number}.{LAYER[module]}.weight"
        else:
            theirs = f"{TOP[module]}.weight"
        if theirs.endswith(("wq.weight", "wk.weight")):  # the reverse of transformers' conversion
            heads, channels = len(tensor) // 8, 8
            tensor = tensor.view(heads, 2, channels // 2, -1).transpose(1, 2).reshape(tensor.shape)
        dim = 1 if theirs.endswith(("wo.weight", "w2.weight")) else 0
        dim = embedding if theirs == "tok_embeddings.weight" else dim
        sizes = tensor.tensor_split(parts, dim) if tensor.ndim == 2 else [tensor] * parts
        for rank, part in zip(ranks, sizes):
            rank[theirs] = part.clone()
    for number, rank in enumerate(ranks):
        torch.save(rank, folder / f"consolidated.{number:02d}.pth")
    (folder / "params.json").write_text(json.dumps({**PARAMS, **params}))
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in RANKS.items())
    (folder / "tokenizer.model").write_text("".join(lines))
    return folder


@pytest.mark.parametrize(
    ("version", "parts", "embedding", "params"),
    [
        (2, 1, 0, {"vocab_size": -1}),
        (2, 2, 1, {"vocab_size": -1}),
        (3, 2, 0, {"rope_theta": 500000.0, "use_scaled_rope": True, "ffn_dim_multiplier": 1.1}),
    ],
)
def test_a_llama_of_meta_gives_the_logits_of_transformers(
    models, version, parts, embedding, params, tmp_path
):
    folder = write_meta(models[version], tmp_path / "meta", parts=parts, embedding=embedding, **params)
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, MetaCheckpoint)
    assert_near(our_logits(checkpoint.load_model()), their_logits(models[version]))
    scaled = {} if version == 2 else {"factor": 8.0, "original_max_position_embeddings": 8192}
    found = checkpoint.config.rope_scaling or {}
    assert {name: found[name] for name in scaled} == scaled


def test_a_converted_llama_has_the_ids_of_tiktoken_and_its_logits(models, tmp_path):
    """The vocabulary of the file is larger than the embedding of the small model, so both are cut."""
    specials = 256
    rows = len(RANKS) + specials
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**LLAMA, "intermediate_size": 96, "vocab_size": rows})
    ).eval()
    folder = write_meta(model, tmp_path / "meta", vocab_size=rows)
    convert(ConvertConfig(source=str(folder), output=str(tmp_path / "ours")))
    checkpoint = open_checkpoint(tmp_path / "ours")
    assert_near(our_logits(checkpoint.load_model()), their_logits(model)[..., :61])
    tokenizer = checkpoint.load_tokenizer()
    theirs = tiktoken.Encoding("llama3", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens={})
    for text in ("hello world 12345\n\n  hell's héé🙂", "<|begin_of_text|>hello", " \r\n\t'LL I'M 1234 x"):
        assert tokenizer.encode(text) == theirs.encode(text, disallowed_special=())
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos, tokenizer.eod) == (len(RANKS), len(RANKS) + 1)
    assert tokenizer.vocabulary()["<|eot_id|>"] == len(RANKS) + 9


def refused(folder):
    with pytest.raises(UserError) as error:
        open_checkpoint(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_that_are_no_llama_are_refused_in_one_line(models, tmp_path):
    folder = write_meta(models[2], tmp_path / "meta", parts=2)
    params, first = json.loads((folder / "params.json").read_text()), folder / "consolidated.00.pth"
    weights = torch.load(first)

    def with_params(**changes):
        (folder / "params.json").write_text(json.dumps({**params, **changes}))
        message = refused(folder)
        (folder / "params.json").write_text(json.dumps(params))
        return message

    assert "params.json: moe = {'num_experts': 8}: no setting of a Llama 1 to 3.2" in with_params(
        moe={"num_experts": 8}
    )
    assert "params.json: n_layers = 'two': must be a whole number" in with_params(n_layers="two")
    assert "layers.2.attention.wk.weight" in with_params(n_layers=3)
    assert "num_layers = 10000000 must be at most 100,000" in with_params(n_layers=10_000_000)
    assert "its settings have num_layers = 90,000" in with_params(n_layers=90_000)
    assert "96 wide, by dim, multiple_of and ffn_dim_multiplier of its params.json 160" in with_params(
        ffn_dim_multiplier=1.8
    )
    assert "61 rows, its params.json vocab_size = 60" in with_params(vocab_size=60)
    assert "mixer.qkv.weight has shape" in with_params(n_kv_heads=4)
    assert "rope_scaling_factor = 8 without use_scaled_rope" in with_params(rope_scaling_factor=8.0)

    def with_weights(changes):
        torch.save({**weights, **changes}, first)
        return refused(folder)

    assert "hold different tensors" in with_weights({"lora.weight": torch.ones(2)})
    assert "'norm.weight' is no plain tensor" in with_weights({"norm.weight": torch.ones(1).expand(10**9)})
    assert "names shutil.rmtree, which Meta does not write there" in with_weights(
        {"norm.weight": __import__("shutil").rmtree}
    )
    first.write_bytes(first.read_bytes()[:1000])
    assert "not a whole file of torch.save" in refused(folder)
    first.unlink()
    assert "has no consolidated.00.pth, but consolidated.01.pth" in refused(folder)
