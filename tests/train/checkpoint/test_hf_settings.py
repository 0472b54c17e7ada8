"""Directories that transformers wrote, through our checkpoints and back; what it loads of ours."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from mt import cli
from mt.core.config import UserError, build
from mt.tokenizer.tokenizer import TokenizerConfig
from mt.train.checkpoint.commands import ConvertConfig, ExportConfig, InspectConfig, convert, export, inspect
from mt.train.checkpoint.hf_settings import config_from_hf
from mt.train.checkpoint.open import open_checkpoint
from mt.train.loop import TrainConfig, train
from mt.train.model.family import build_model

pytestmark = pytest.mark.usefixtures("one_thread")
V, T = 61, 24
TOLERANCE = 1e-5
SIXTY = TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=60)
TEXT = "w5 w17 w3 w40 w5"
COMMON = {
    "attn_implementation": "eager",
    "initializer_range": 0.2,
    "vocab_size": V,
    "bos_token_id": 1,
    "eos_token_id": 2,
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
MODELS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "gpt_bigcode": lambda: transformers.GPTBigCodeForCausalLM(transformers.GPTBigCodeConfig(**GPT2)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "llama 3.2": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA, rope_parameters=LLAMA3, tie_word_embeddings=True)
    ),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, sliding_window=7)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=16)),
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
    "mamba2": lambda: transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**MAMBA)),
    "bert": lambda: transformers.BertForPreTraining(
        transformers.BertConfig(**BERT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, feed_forward_proj="relu")
    ),
    "t5 1.1": lambda: untied_t5(),
}


def untied_t5():
    """What transformers makes of a T5 v1.1 checkpoint, which has a head of its own; a new model it ties
    regardless.
    """
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    )
    model.lm_head.weight = torch.nn.Parameter(torch.randn(V, T5["d_model"]))
    return model


def random_model(name):
    """A random model of transformers, vectors and biases away from 1 and 0."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(1, 0.3)
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
    if model.config.model_type == "t5":
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


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_goes_through_our_checkpoints_and_back_without_losing_a_bit(name, tmp_path):
    theirs = random_model(name)
    source = write(theirs, tmp_path / "theirs", max_shard_size="20KB")
    facts = convert(ConvertConfig(source=str(source), output=str(tmp_path / "ours")))
    assert (facts["from_library"], facts["to_library"]) == ("Hugging Face", "mt")
    checkpoint = open_checkpoint(tmp_path / "ours")
    ours, tokenizer = checkpoint.load_model(), checkpoint.load_tokenizer()
    assert_near(our_logits(ours), their_logits(theirs))
    assert (tokenizer.encode(TEXT), tokenizer.bos, tokenizer.eod) == ([5, 17, 3, 40, 5], 1, 2)

    export(ExportConfig(source=str(tmp_path / "ours"), output=str(tmp_path / "back")))
    before, after = weights(source), weights(tmp_path / "back")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)
    again, report = type(theirs).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_near(their_logits(again.eval()), their_logits(theirs))
    assert (again.config.bos_token_id, again.config.eos_token_id) == (1, 2)
    # transformers 5 has a tokenizer of its own for every qwen2, whatever tokenizer.json says.
    kind = transformers.PreTrainedTokenizerFast if name == "qwen2" else transformers.AutoTokenizer
    assert kind.from_pretrained(tmp_path / "back").encode(TEXT, add_special_tokens=False) == [5, 17, 3, 40, 5]

    convert(ConvertConfig(source=str(tmp_path / "back"), output=str(tmp_path / "ours again")))
    assert_same_weights(open_checkpoint(tmp_path / "ours again").load_model(), ours)


def assert_same_weights(found, expected):
    held = dict(found.named_parameters())
    assert held.keys() == dict(expected.named_parameters()).keys()
    assert all(torch.equal(held[n], p) for n, p in expected.named_parameters())


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "mamba2"])
def test_a_mixture_and_a_mamba_give_the_gradients_of_transformers(name, tmp_path):
    """Their gradients are written by transformers as if they were weights, and so come to us under our names."""
    theirs = random_model(name)
    write(theirs, tmp_path / "weights")
    ours = build_model(
        config_from_hf(json.loads((tmp_path / "weights/config.json").read_text()), "config.json")
    )
    ours.load_state_dict(open_checkpoint(tmp_path / "weights").load_model().state_dict())
    tokens = random_tokens((3, T + 1))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    F.cross_entropy(theirs(inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    ours.loss(inputs, labels, torch.ones(labels.shape)).backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    write(theirs, tmp_path / "gradients")
    expected = dict(open_checkpoint(tmp_path / "gradients").load_model().named_parameters())
    for n, parameter in ours.named_parameters():
        assert (parameter.grad - expected[n]).norm() <= TOLERANCE * expected[n].norm(), n


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_comes_in_and_goes_out_unchanged(name, dtype, tmp_path):
    source = write(random_model("llama").to(dtype), tmp_path / "theirs")
    convert(ConvertConfig(source=str(source), output=str(tmp_path / "ours")))
    assert next(open_checkpoint(tmp_path / "ours").load_model().parameters()).dtype == torch.float32
    export(ExportConfig(source=str(tmp_path / "ours"), output=str(tmp_path / "back"), dtype=name))
    before, after = weights(source), weights(tmp_path / "back")
    assert all(after[n].dtype == dtype and torch.equal(after[n], before[n]) for n in before)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").dtype == dtype
    with pytest.raises(UserError, match="dtype = bf16: checkpoints of mt hold float32; leave it out"):
        convert(
            ConvertConfig(
                source=str(source), output=str(tmp_path / "not"), dtype=name if name == "bf16" else "bf16"
            )
        )


@pytest.fixture(scope="session")
def gpt2_run(tmp_path_factory, tree):
    """A finished run of a model that Hugging Face has, too; its vocabulary of 60 is padded to 128 rows."""
    folder = tmp_path_factory.mktemp("gpt2") / "run"
    settings = tree(folder, train_iters=3)
    settings["model"]["activation"] = "gelu_tanh"
    train(build(TrainConfig, ("test", settings)))
    return folder


def test_a_run_is_exported_in_several_files_with_an_index_and_without_the_padding_of_its_vocabulary(
    gpt2_run, tmp_path
):
    export(ExportConfig(source=str(gpt2_run), output=str(tmp_path / "out"), max_shard_size=2e-5))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert all((tmp_path / "out" / f).stat().st_size < 25_000 for f in index["weight_map"].values())
    held = weights(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values())
    assert held["transformer.wte.weight"].shape == (60, 32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = random_tokens((2, 16)) % 60
    with torch.no_grad():
        ours = open_checkpoint(gpt2_run).load_model()
        assert_near(ours.logits(ours(tokens))[..., :60], theirs(tokens).logits)
    convert(ConvertConfig(source=str(tmp_path / "out"), output=str(tmp_path / "ours"), tokenizer=SIXTY))
    back = dict(open_checkpoint(tmp_path / "ours").load_model().named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(back[name][:60], parameter[:60]), name
        assert back[name].shape == parameter.shape


def test_evaluation_and_inspection_take_a_hugging_face_directory_as_it_is(tmp_path):
    theirs = random_model("qwen2")
    source = write(theirs, tmp_path)
    checkpoint = open_checkpoint(source)
    assert_near(our_logits(checkpoint.load_model()), their_logits(theirs))
    assert checkpoint.load_tokenizer().encode(TEXT) == [5, 17, 3, 40, 5]
    assert checkpoint.seq_length == checkpoint.config.max_position_embeddings == 64
    found = inspect(InspectConfig(checkpoint=str(source)))
    assert found["parameters"] == sum(p.numel() for p in theirs.parameters())
    assert found["text"].startswith(f"{source}: a checkpoint of Hugging Face, step 0")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(
        UserError,
        match=(
            r"has no tokenizer.json; add the tokenizer's files, or name a tokenizer to `mt checkpoint"
            r" convert`"
        ),
    ):
        open_checkpoint(source).load_tokenizer()


@pytest.fixture
def line(corpus, tmp_path):
    """line(source, flags ...) -> the command line of a short run that starts from a checkpoint."""

    def made(source, *flags):
        return [
            "--data-path",
            corpus,
            "--seq-length",
            "16",
            "--split",
            "90,10,0",
            "--tokenizer-type",
            "NullTokenizer",
            "--tokenizer-vocab-size",
            "60",
            "--lr",
            "1e-30",
            "--weight-decay",
            "0",
            "--micro-batch-size",
            "2",
            "--train-iters",
            "2",
            "--eval-iters",
            "2",
            "--save",
            str(tmp_path / "run"),
            "--load",
            str(source),
            *flags,
        ]

    return made


def test_a_run_takes_its_shape_and_its_weights_from_a_hugging_face_directory(line, tmp_path):
    source = write(random_model("llama 3.2"), tmp_path / "theirs")
    manifest = cli.call(
        ("train",), line(source, "--hf", str(source), "--finetune", "--hidden-dropout", "0.1")
    )
    checkpoint = open_checkpoint(tmp_path / "run")
    run, shape = checkpoint.load_model(), checkpoint.config
    assert (shape.rope_scaling["rope_type"], shape.hidden_dropout, shape.padded_vocab_size) == (
        "llama3",
        0.1,
        128,
    )
    before = open_checkpoint(source).load_model()
    for name, parameter in before.named_parameters():
        assert torch.equal(dict(run.named_parameters())[name][: len(parameter)], parameter)
    assert manifest["counts"]["steps"] == 2
    with pytest.raises(
        UserError, match="holds weights alone, and no place in any data to go on from; give --finetune"
    ):
        cli.call(("train",), [*line(source, "--hf", str(source)), "--overwrite"])
    with pytest.raises(
        UserError,
        match=(
            r"theirs: holds another model: embedding.weight is \(128, 32\) there and \(128, 768\) here; give"
            r" --hf .*theirs"
        ),
    ):
        cli.call(("train",), [*line(source, "--finetune", "--vocab-size", "61"), "--overwrite"])
    with pytest.raises(
        UserError, match=r"nowhere: has no config.json; give the directory of a Hugging Face model"
    ):
        cli.call(("train",), line(source, "--hf", str(tmp_path / "nowhere")))


TP2, PP2 = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")


@pytest.mark.parametrize(
    ("world", "layout"),
    [(2, TP2), (2, PP2), pytest.param(4, TP2 + PP2, marks=pytest.mark.slow)],
    ids=["TP2", "PP2", "TP2 x PP2"],
)
def test_weights_of_hugging_face_go_in_and_out_at_a_layout_without_losing_a_bit(
    pool, line, tmp_path, world, layout
):
    source = write(random_model("llama"), tmp_path / "theirs")
    pool.run(
        cli.call,
        world,
        ("train",),
        line(source, "--hf", str(source), "--finetune", "--eval-iters", "0", "--split", "100,0,0", *layout),
    )
    export(ExportConfig(source=str(tmp_path / "run"), output=str(tmp_path / "back")))
    found, expected = weights(tmp_path / "back"), weights(source)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor[: len(found[name])]) for name, tensor in expected.items())


def test_a_file_of_settings_may_name_the_directory_and_win_over_it(source):
    tree = {
        "hf": str(source),
        "model": {"num_layers": 1},
        "data_path": ["x"],
        "tokenizer_type": "NullTokenizer",
        "tokenizer_vocab_size": 9,
        "seq_length": 16,
        "lr": 1,
        "train_iters": 1,
        "save": "y",
    }
    model = cli.configure(TrainConfig, [("settings.yaml", tree)]).model
    assert (model.num_layers, model.hidden_size, model.num_query_groups, model.activation) == (
        1,
        32,
        2,
        "swiglu",
    )


def test_a_run_starts_from_a_converted_checkpoint(line, tmp_path, capsys):
    source = write(random_model("llama"), tmp_path / "theirs")
    cli.call(("checkpoint", "convert"), [str(source), str(tmp_path / "ours")])
    with pytest.raises(UserError, match="ours: holds weights alone"):
        cli.call(("train",), line(tmp_path / "ours", "--hf", str(source)))
    assert "other settings" not in capsys.readouterr().err
    assert "finished" in cli.call(
        ("train",), line(tmp_path / "ours", "--hf", str(source), "--finetune", "--rotary-base", "7")
    )
    assert (
        "ours: is of a model with other settings (rotary_base 10000.0 there, 7.0 here); those here count"
        in capsys.readouterr().err
    )


@pytest.fixture
def source(tmp_path):
    return write(random_model("llama"), tmp_path / "theirs", max_shard_size="20KB")


def refused(source, out):
    with pytest.raises(UserError) as error:
        convert(ConvertConfig(source=str(source), output=str(out)))
    assert "\n" not in str(error.value)
    assert not out.exists() or not any(out.iterdir())
    return str(error.value)


def change(source, **settings):
    raw = json.loads((source / "config.json").read_text()) | settings
    (source / "config.json").write_text(json.dumps(raw))


def test_what_is_not_whole_is_refused_by_name(source, tmp_path):
    out = tmp_path / "out"
    shards = sorted(source.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-100])
    assert f"{shards[1]}: not a whole safetensors file" in refused(source, out)
    shards[1].write_bytes(b"")
    assert f"{shards[1]}: not a whole safetensors file" in refused(source, out)
    shards[1].unlink()
    assert (
        f"has no {shards[1].name}, which model.safetensors.index.json names; fetch the model again"
        in refused(source, out)
    )
    shards[1].write_bytes(whole)
    held = load_file(shards[1])
    name = next(iter(held))
    save_file({**held, name: held[name][:-1].contiguous()}, shards[1])
    assert "config.json says" in refused(source, out)
    save_file({n: t for n, t in held.items() if n != name}, shards[1])
    assert f"has no weight {name}; give a whole llama model's directory" in refused(source, out)
    save_file({**held, "model.layers.0.extra.weight": torch.ones(1)}, shards[1])
    assert (
        "holds model.layers.0.extra.weight, which no llama of its config.json has; this model cannot be"
        " loaded" in refused(source, out)
    )
    shards[1].write_bytes(whole)
    convert(ConvertConfig(source=str(source), output=str(out)))


def test_models_that_are_not_ours_are_refused_by_name(source, tmp_path):
    out, plain = tmp_path / "out", json.loads((source / "config.json").read_text())
    for settings, message in [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'; only gpt2, gpt_bigcode"),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            "model.rope_scaling has rope_type 'longrope'; use linear, dynamic, llama3, yarn",
        ),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config: the weights are quantised; give the model as it was before that",
        ),
        ({"attention_bias": True}, "attention_bias is True; only False can be loaded as llama"),
        (
            {"vocab_size": 7},
            "has 7 rows of vocabulary, and the tokenizer 61 tokens; give the model's own tokenizer",
        ),
    ]:
        (source / "config.json").write_text(json.dumps(plain | settings))
        assert message in refused(source, out)
    (source / "config.json").write_text("{")
    assert "config.json: not whole JSON" in refused(source, out)
    (source / "config.json").write_text("[]")
    assert "config.json: must hold a model's settings, not a list" in refused(source, out)
    (source / "config.json").write_text(json.dumps(plain))
    for file in source.glob("*.safetensors*"):
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    assert "has no model.safetensors (only pytorch_model.bin, which may run any code)" in refused(source, out)
    assert "nowhere: no such checkpoint; check the path" in refused(tmp_path / "nowhere", out)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "mamba2",
            {"time_step_limit": [0.0, 0.5]},
            r"time_step_limit is \[0.0, 0.5\]; only models whose time steps have no limit",
        ),
        (
            "mamba2",
            {"expand": 4},
            "expand is 4, which times hidden_size is not the 64 of num_heads x head_dim",
        ),
        ("mamba2", {"conv_kernel": 3}, "conv_kernel is 3; only 4 can be loaded as mamba2"),
        ("mixtral", {"num_local_experts": None}, None),
    ],
)
def test_settings_of_mixtures_and_mambas_are_checked(kind, settings, message):
    raw = {**MODELS[kind]().config.to_dict(), **settings}
    if message is None:
        assert config_from_hf(raw, "config.json").num_experts == 8
        return
    with pytest.raises(UserError, match=message):
        config_from_hf(raw, "config.json")


def test_the_same_command_again_finds_its_work_done_and_after_a_kill_gives_the_same_bytes(source, tmp_path):
    config = ConvertConfig(source=str(source), output=str(tmp_path / "out"))
    first = convert(config)
    assert convert(config) == first
    content = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (tmp_path / "out" / "manifest.json").rename(tmp_path / "manifest.json")
    (tmp_path / "out" / "run.json").write_text("")
    (tmp_path / "out" / "__0_0.distcp").write_bytes(b"half")
    convert(config)
    again = {p.name: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {n: b for n, b in again.items() if n != "manifest.json"} == {
        n: b for n, b in content.items() if n != "manifest.json"
    }
    with pytest.raises(UserError, match="holds another run of `mt checkpoint convert`"):
        convert(dataclasses.replace(config, format="hf"))


MEASURED = """
import resource, sys
from mt.train.checkpoint.commands import ConvertConfig, convert
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source, output in zip(sys.argv[1:], sys.argv[2:]):
    convert(ConvertConfig(source=source, output=output))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """250 MB of weights in float32, from files of 30 MB of bfloat16 into our checkpoint and out again; the
    largest tensor has 3 MB.
    """
    config = transformers.LlamaConfig(
        **{**LLAMA, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 24}
    )
    config.save_pretrained(tmp_path / "theirs")
    write_tokenizer(tmp_path / "theirs")
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in transformers.LlamaForCausalLM(config).named_parameters()}
    index, shard, size, files = {}, {}, 0, 0

    def flush():
        nonlocal shard, size, files
        files += 1
        save_file(shard, tmp_path / "theirs" / f"part{files}.safetensors", metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, f"part{files}.safetensors"))
        shard, size = {}, 0

    for name, shape in shapes.items():
        shard[name] = torch.ones(shape, dtype=torch.bfloat16)
        size += shard[name].nbytes
        if size > 3e7:
            flush()
    flush()
    total = 2 * sum(f.stat().st_size for f in (tmp_path / "theirs").glob("*.safetensors"))
    assert total > 2.4e8
    (tmp_path / "theirs" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    places = [str(tmp_path / name) for name in ("theirs", "ours", "back")]
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, *places], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) * 1024 < 0.4 * total, result.stdout
    for place in places:
        shutil.rmtree(place)
