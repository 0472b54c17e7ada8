"""mt checkpoint inspect, convert and export."""

import dataclasses
import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file

from mt.core.config import UserError, build
from mt.tests.train.checkpoint.transformers_models import (
    LLAMA,
    random_model,
    write,
    write_tokenizer,
)
from mt.tokenizer.tokenizer import TokenizerConfig
from mt.train.checkpoint.commands import ConvertConfig, ExportConfig, InspectConfig, convert, export, inspect
from mt.train.checkpoint.open import open_checkpoint
from mt.train.loop import TrainConfig, train

pytestmark = pytest.mark.usefixtures("one_thread")
SIXTY = TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=60)


@pytest.fixture
def source(tmp_path):
    return write(random_model("llama"), tmp_path / "theirs", max_shard_size="20KB")


MEASURED = """
import resource, sys
from mt.train.checkpoint.commands import ConvertConfig, ExportConfig, InspectConfig, convert, export, inspect
from mt.train.checkpoint.open import open_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source, output in zip(sys.argv[1:], sys.argv[2:]):
    convert(ConvertConfig(source=source, output=output))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_repeated_command_is_up_to_date_and_one_repeated_after_a_kill_gives_the_same_bytes(
    source, tmp_path
):
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


def test_memory_does_not_grow_with_the_model(tmp_path):
    """From bfloat16 files of 30 MB to our checkpoint and back: 250 MB in float32, largest tensor 3 MB."""
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


def test_inspect_shows_progress_and_every_tensor(finished):
    found = inspect(InspectConfig(checkpoint=str(finished[0])))
    model = open_checkpoint(finished[0]).load_model()
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) == finished[1]["parameters"]
    assert found["step"] == 8
    assert found["consumed_samples"] == 64
    assert found["tensors"]["exp_avg.embedding.weight"] == {"shape": [128, 32], "dtype": "float32"}
    assert "step 8, 64 samples, 1,024 tokens" in found["text"]
    assert "layers.1.mixer.qkv.weight" in found["text"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"format": "torch", "target_tensor_parallel_size": 3},
            "target_tensor_parallel_size = 3 does not divide model.num_query_groups = 4; use fewer ranks",
        ),
        (
            {"format": "torch", "target_pipeline_parallel_size": 3},
            "target_pipeline_parallel_size = 3 does not divide model.num_layers = 2",
        ),
        (
            {"format": "torch_dist", "target_tensor_parallel_size": 2},
            "mt loads its checkpoints at any layout: leave it out",
        ),
        ({"max_shard_size": 0}, "max_shard_size = 0 must be above 0"),
    ],
)
def test_impossible_settings_are_refused(gpt2_run, settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        convert(ConvertConfig(source=str(gpt2_run), output=str(tmp_path / "out"), **settings))


@pytest.mark.parametrize(
    "name", ["make_vocab_size_divisible_by", "target_tensor_parallel_size", "target_pipeline_parallel_size"]
)
def test_sizes_below_1_are_refused(gpt2_run, name, tmp_path):
    with pytest.raises(UserError, match=f"{name} = 0 must be at least 1"):
        ConvertConfig(source=str(gpt2_run), output=str(tmp_path / "out"), format="torch", **{name: 0})


def vocabulary_rows(folder):
    """(vocabulary weights by name, the other weights by name) of a checkpoint."""
    weights = dict(open_checkpoint(folder).load_model().named_parameters())
    vocabulary = {n: weights.pop(n) for n in list(weights) if n in ("embedding.weight", "output.weight")}
    assert vocabulary
    return vocabulary, weights


@pytest.mark.parametrize("format", ["torch_dist", "torch"])
def test_the_padding_of_the_vocabulary_can_shrink_and_grow_again(gpt2_run, format, tmp_path):
    """60 tokens padded to 128 rows, in the format of mt or Megatron-LM, to 64 rows and back to 128."""
    source = gpt2_run
    if format == "torch":
        source = tmp_path / "megatron"
        convert(ConvertConfig(source=str(gpt2_run), output=str(source), format="torch"))
    expected, others = vocabulary_rows(gpt2_run)
    for rows in (64, 128):
        out = tmp_path / f"{rows} rows"
        convert(
            ConvertConfig(
                source=str(source),
                output=str(out),
                format="torch_dist",
                make_vocab_size_divisible_by=rows,
                tokenizer=SIXTY,
            )
        )
        found, rest = vocabulary_rows(out)
        for name, weight in found.items():
            assert len(weight) == rows
            assert torch.equal(weight[:60], expected[name][:60])
            assert format == "torch" or not weight[60:].any(), (
                "Megatron-LM's format does not store where padding begins"
            )
        assert all(torch.equal(rest[name], weight) for name, weight in others.items())
        source = out


def test_the_default_output_format_depends_on_the_source_format(gpt2_run, tmp_path):
    facts = convert(ConvertConfig(source=str(gpt2_run), output=str(tmp_path / "hf")))
    assert (facts["from_library"], facts["to_library"], facts["step"]) == ("mt", "Hugging Face", 3)
    assert facts["counts"]["parameters"] == inspect(InspectConfig(checkpoint=str(gpt2_run)))["parameters"]
    facts = convert(ConvertConfig(source=str(tmp_path / "hf"), output=str(tmp_path / "mt"), tokenizer=SIXTY))
    assert (facts["from_library"], facts["to_library"], facts["step"]) == ("Hugging Face", "mt", 0)
    files = [path for path in (tmp_path / "mt").rglob("*") if path.is_file()]
    assert facts["counts"]["files"] == len(files) - 1, "all but the manifest"
    assert facts["counts"]["bytes"] == sum(p.stat().st_size for p in files if p.name != "manifest.json")
    assert not open_checkpoint(tmp_path / "mt").moment_names()
    assert "MB without optimizer moments" in inspect(InspectConfig(checkpoint=str(tmp_path / "mt")))["text"]
    assert "MB with the optimizer's moments" in inspect(InspectConfig(checkpoint=str(gpt2_run)))["text"]


def test_export_refuses_a_model_that_hugging_face_lacks_before_it_writes(tree, tmp_path):
    settings = tree(tmp_path / "run", train_iters=3, eval_iters=0, split="100,0,0")
    settings["model"] |= {"activation": "swiglu", "position_embedding_type": "rope"}
    train(build(TrainConfig, ("test", settings)))
    with pytest.raises(UserError, match="Hugging Face has no such model: its llama is the nearest"):
        export(ExportConfig(source=str(tmp_path / "run"), output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    for format in ("torch_dist", "torch"):
        out = tmp_path / format
        convert(ConvertConfig(source=str(tmp_path / "run"), output=str(out), format=format))
        assert open_checkpoint(out).config.activation == "swiglu"


def test_a_source_that_is_refused_leaves_the_output_free_for_another(gpt2_run, tmp_path):
    broken = write(random_model("llama"), tmp_path / "broken")
    raw = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"has no weight model.layers.2"):
        convert(ConvertConfig(source=str(broken), output=str(tmp_path / "out")))
    export(ExportConfig(source=str(gpt2_run), output=str(tmp_path / "out")))
    assert open_checkpoint(tmp_path / "out").library == "Hugging Face"


@pytest.mark.parametrize("format", ["hf", "torch_dist", "torch", "megatron_torch_dist"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(gpt2_run, format, tmp_path):
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(UserError, match="could not be written; most likely the disk is full") as error:
            convert(ConvertConfig(source=str(gpt2_run), output=str(out), format=format))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert not [path for path in out.rglob("*") if path.is_file()]
