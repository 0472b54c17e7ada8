"""Hugging Face directories: read, trained from, exported, and loaded by transformers."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from mt import cli
from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import (
    LLAMA,
    LLAMA3,
    MODELS,
    TEXT,
    TOLERANCE,
    T,
    assert_near,
    assert_same_weights,
    our_logits,
    random_model,
    random_tokens,
    their_logits,
    weights,
    write,
)
from mt.tokenizer.tokenizer import TokenizerConfig
from mt.train.checkpoint.commands import ConvertConfig, ExportConfig, InspectConfig, convert, export, inspect
from mt.train.checkpoint.hf_settings import config_from_hf
from mt.train.checkpoint.huggingface import minilm_directory, split_into_files
from mt.train.checkpoint.open import open_checkpoint
from mt.train.model.family import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


SIXTY = TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=60)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_is_converted_and_exported_bit_for_bit(name, tmp_path):
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
    # for qwen2, transformers 5 builds its own tokenizer and ignores tokenizer.json
    kind = transformers.PreTrainedTokenizerFast if name == "qwen2" else transformers.AutoTokenizer
    assert kind.from_pretrained(tmp_path / "back").encode(TEXT, add_special_tokens=False) == [5, 17, 3, 40, 5]

    convert(ConvertConfig(source=str(tmp_path / "back"), output=str(tmp_path / "ours again")))
    assert_same_weights(open_checkpoint(tmp_path / "ours again").load_model(), ours)


def test_pythias_files_are_read_with_the_names_and_the_buffers_that_they_were_published_with(tmp_path):
    """The files of EleutherAI's Pythia: the output layer is `embed_out`, and masks are stored."""
    theirs = random_model("gpt_neox")
    source = write(theirs, tmp_path)
    held = load_file(source / "model.safetensors")
    assert "embed_out.weight" in held
    for layer in range(theirs.config.num_hidden_layers):
        buffers = {
            "bias": torch.ones(64, 64, dtype=torch.bool).tril()[None, None],
            "masked_bias": torch.tensor(-1e9),
            "rotary_emb.inv_freq": (500.0 ** -(torch.arange(0, 4, 2) / 4)).half(),
        }
        for buffer, tensor in buffers.items():
            held[f"gpt_neox.layers.{layer}.attention.{buffer}"] = tensor
    save_file(held, source / "model.safetensors")
    assert_near(our_logits(open_checkpoint(source).load_model()), their_logits(theirs))


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "mamba2"])
def test_a_mixture_and_a_mamba_give_the_gradients_of_transformers(name, tmp_path):
    """transformers writes its gradients in place of weights, so that we read them under our names."""
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
def test_half_precision_weights_are_read_and_exported_unchanged(name, dtype, tmp_path):
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


def test_a_run_is_exported_in_several_files_with_an_index_and_without_the_padding_of_its_vocabulary(
    gpt2_run, tmp_path
):
    export(ExportConfig(source=str(gpt2_run), output=str(tmp_path / "out"), max_shard_size=2e-5))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert all((tmp_path / "out" / f).stat().st_size < 25_000 for f in index["weight_map"].values())
    found = weights(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    assert found["transformer.wte.weight"].shape == (60, 32)
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


def test_evaluation_and_inspection_read_a_hugging_face_directory_directly(tmp_path):
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
def command(corpus, tmp_path):
    """command(source, flags ...) -> the command line of a short run that starts from a checkpoint."""

    def arguments(source, *flags):
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

    return arguments


def test_a_run_reads_its_settings_and_its_weights_from_a_hugging_face_directory(command, tmp_path):
    source = write(random_model("llama 3.2"), tmp_path / "theirs")
    manifest = cli.call(
        ("train",), command(source, "--hf", str(source), "--finetune", "--hidden-dropout", "0.1")
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
        UserError, match="has only weights, without a position in the data to resume from; give --finetune"
    ):
        cli.call(("train",), [*command(source, "--hf", str(source)), "--overwrite"])
    with pytest.raises(
        UserError,
        match=(
            r"theirs: holds another model: embedding.weight is \(128, 32\) there and \(128, 768\) here; give"
            r" --hf .*theirs"
        ),
    ):
        cli.call(("train",), [*command(source, "--finetune", "--vocab-size", "61"), "--overwrite"])
    with pytest.raises(
        UserError, match=r"nowhere: has no config.json; give the directory of a Hugging Face model"
    ):
        cli.call(("train",), command(source, "--hf", str(tmp_path / "nowhere")))


TP2, PP2 = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")


@pytest.mark.parametrize(
    ("world", "layout"),
    [(2, TP2), (2, PP2), pytest.param(4, TP2 + PP2, marks=pytest.mark.slow)],
    ids=["TP2", "PP2", "TP2 x PP2"],
)
def test_weights_of_hugging_face_are_loaded_and_exported_bit_for_bit_at_a_layout(
    pool, command, tmp_path, world, layout
):
    source = write(random_model("llama"), tmp_path / "theirs")
    pool.run(
        cli.call,
        world,
        ("train",),
        command(
            source, "--hf", str(source), "--finetune", "--eval-iters", "0", "--split", "100,0,0", *layout
        ),
    )
    export(ExportConfig(source=str(tmp_path / "run"), output=str(tmp_path / "back")))
    found, expected = weights(tmp_path / "back"), weights(source)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor[: len(found[name])]) for name, tensor in expected.items())


def test_a_run_starts_from_a_converted_checkpoint(command, tmp_path, capsys):
    source = write(random_model("llama"), tmp_path / "theirs")
    cli.call(("checkpoint", "convert"), [str(source), str(tmp_path / "ours")])
    with pytest.raises(UserError, match="ours: has only weights"):
        cli.call(("train",), command(tmp_path / "ours", "--hf", str(source)))
    assert "other settings" not in capsys.readouterr().err
    assert "finished" in cli.call(
        ("train",), command(tmp_path / "ours", "--hf", str(source), "--finetune", "--rotary-base", "7")
    )
    assert (
        "ours: is of a model with other settings (rotary_base 10000.0 there, 7.0 here); this run uses those"
        " here" in capsys.readouterr().err
    )


@pytest.fixture
def source(tmp_path):
    return write(random_model("llama"), tmp_path / "theirs", max_shard_size="20KB")


CONVENTIONS = {
    "tokenizer_config.json": {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>", "padding_side": "left", "model_max_length": 48, "add_bos_token": True,
    },
    "generation_config.json": {
        "bos_token_id": 1, "eos_token_id": [2, 7], "pad_token_id": 0, "temperature": 0.6, "do_sample": True,
    },
}  # fmt: skip


def test_the_conventions_of_a_directory_survive_a_run(source, command, tmp_path):
    """in -> train -> out: class, chat template, padding, ids that end texts, settings of generation."""
    for name, facts in CONVENTIONS.items():
        (source / name).write_text(json.dumps(facts))
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    flags = command(source, "--hf", str(source), "--finetune", "--tokenizer-model", str(source))
    at = flags.index("--tokenizer-type")  # the data is of no tokenizer
    cli.call(("train",), [*flags[:at], *flags[at + 4 :], "--eval-iters", "0"])
    out = tmp_path / "out"
    export(ExportConfig(source=str(tmp_path / "run"), output=str(out)))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert (tokenizer.padding_side, tokenizer.model_max_length, tokenizer.pad_token_id) == ("left", 48, 0)
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    usage = model.generation_config
    assert (usage.eos_token_id, usage.pad_token_id, usage.temperature) == ([2, 7], 0, 0.6)
    assert model.config.eos_token_id == [2, 7]


def test_lists_of_ids_that_only_config_json_has_survive(source, tmp_path):
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "eos_token_id": [2, 9]}))
    (source / "generation_config.json").unlink(missing_ok=True)
    convert(ConvertConfig(source=str(source), output=str(tmp_path / "ours")))
    export(ExportConfig(source=str(tmp_path / "ours"), output=str(tmp_path / "out")))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [2, 9]


def refused(source, out):
    with pytest.raises(UserError) as error:
        convert(ConvertConfig(source=str(source), output=str(out)))
    assert "\n" not in str(error.value)
    assert not out.exists() or not any(out.iterdir())
    return str(error.value)


def test_damaged_or_missing_files_and_weights_are_named(source, tmp_path):
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
    found = load_file(shards[1])
    name = next(iter(found))
    save_file({**found, name: found[name][:-1].contiguous()}, shards[1])
    assert "config.json says" in refused(source, out)
    save_file({n: t for n, t in found.items() if n != name}, shards[1])
    assert f"has no weight {name}; give a whole llama model's directory" in refused(source, out)
    save_file({**found, "model.layers.0.extra.weight": torch.ones(1)}, shards[1])
    assert (
        "holds model.layers.0.extra.weight, which no llama of its config.json has; this model cannot be"
        " loaded" in refused(source, out)
    )
    shards[1].write_bytes(whole)
    convert(ConvertConfig(source=str(source), output=str(out)))


def test_unsupported_models_and_settings_are_named(source, tmp_path):
    out, plain = tmp_path / "out", json.loads((source / "config.json").read_text())
    for settings, message in [
        ({"model_type": "gemma3"}, "model_type is 'gemma3'; only gpt2, gpt_bigcode"),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config: the weights are quantised; give the model as it was before that",
        ),
        ({"attention_bias": True}, "has no weight model.layers.0.self_attn.q_proj.bias"),
        (
            {"vocab_size": 7},
            "has 7 rows of vocabulary, and the tokenizer 61 tokens; give the model's own tokenizer",
        ),
    ]:
        (source / "config.json").write_text(json.dumps(plain | settings))
        assert message in refused(source, out)
    (source / "config.json").write_text("{")
    assert "config.json, line 1: not valid JSON" in refused(source, out)
    (source / "config.json").write_text("[]")
    assert "config.json: must hold a model's settings, not a list" in refused(source, out)
    (source / "config.json").write_text(json.dumps(plain))
    for file in source.glob("*.safetensors*"):
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    assert "has no model.safetensors (only pytorch_model.bin, which may run any code)" in refused(source, out)
    assert "nowhere: no such checkpoint; check the path" in refused(tmp_path / "nowhere", out)


def test_minilm_gives_the_hidden_states_of_transformers():
    directory = minilm_directory()
    tokens = torch.randint(1000, 30000, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(40) < torch.tensor([[40], [7], [25]])
    with torch.no_grad():
        ours = open_checkpoint(directory).load_encoder()(tokens, mask)
        theirs = (
            transformers.AutoModel.from_pretrained(str(directory))
            .eval()(input_ids=tokens, attention_mask=mask.long())
            .last_hidden_state
        )
    torch.testing.assert_close(ours[mask], theirs[mask], rtol=0, atol=1e-5)


def test_a_random_bert_with_token_types_and_tanh_gelu_gives_the_hidden_states_of_transformers(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
        hidden_act="gelu_new",
        initializer_range=0.3,
    )
    theirs = transformers.BertForMaskedLM(config).eval()  # names of its weights begin with `bert.`
    theirs.save_pretrained(tmp_path)
    tokens, types = torch.randint(0, 50, (2, 16)), torch.randint(0, 2, (2, 16))
    with torch.no_grad():
        ours = open_checkpoint(tmp_path).load_encoder()(tokens, token_types=types)
        expected = theirs.bert(input_ids=tokens, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_directory_that_is_not_a_whole_bert_is_refused_with_the_reason(tmp_path):
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    gpt2.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"model_type is 'gpt2'; only 'bert' can be loaded"):
        open_checkpoint(tmp_path / "gpt2").load_encoder()
    config = json.loads((minilm_directory() / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="not a whole safetensors file"):
        open_checkpoint(tmp_path).load_encoder()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(minilm_directory() / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(UserError, match=r"has no weight bert\.encoder\.layer\.6"):
        open_checkpoint(tmp_path).load_encoder()
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 100}))
    with pytest.raises(
        UserError, match=r"intermediate\.dense\.weight has shape \(1536, 384\), config.json says \(100, 384\)"
    ):
        open_checkpoint(tmp_path).load_encoder()


def test_files_are_filled_in_order_up_to_their_size():
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = random.integers(1, 12, random.integers(1, 12)).tolist()
        most = int(random.integers(1, 30))
        tensors = [(str(n), torch.empty(size, dtype=torch.uint8)) for n, size in enumerate(sizes)]
        files = list(split_into_files(iter(tensors), most))
        assert [name for file in files for name, _ in file] == [name for name, _ in tensors]
        totals = [sum(t.nbytes for _, t in file) for file in files]
        assert all(total <= most or len(file) == 1 for total, file in zip(totals, files))
        firsts = [file[0][1].nbytes for file in files]
        assert all(total + first > most for total, first in zip(totals, firsts[1:])), (
            "a file begins too early"
        )


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"max_position_embeddings": 8193}, 8192),
        ({"max_position_embeddings": 64, "rope_parameters": LLAMA3}, 16),
    ],
)
def test_seq_length_is_the_length_before_rope_scaling_and_at_most_8192(tmp_path, settings, length):
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **settings})).save_pretrained(tmp_path)
    assert open_checkpoint(tmp_path).seq_length == length
