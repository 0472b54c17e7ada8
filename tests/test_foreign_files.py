"""Every leaf of every file that a stranger may have made is checked before it is used.

Each leaf is replaced by null, true, a text, an empty list or mapping, -1, 1e30, 2^31 and a number of 5,000
digits, some by nesting of 10^6 levels, and a command reads the file. It must end with exit code 0 or 2,
without a traceback, within 5 seconds of processor time and 1 GB of memory. The quick tests take one value of
each leaf, those marked `slow` three or all.
"""

import argparse
import functools
import io
import json
import shutil
import sys

import numpy as np
import pytest
import torch
import transformers
import yaml

from mt.core.config import UserError
from mt.core.manifest import file_digest
from mt.tests import foreign_files
from mt.tests.foreign_files import array_cases, as_json, as_yaml, damaged, run, survive
from mt.tests.retro import small_databases
from mt.tests.train.checkpoint.transformers_models import DECODERS, MODELS, random_model, write

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[1, pytest.param(3, marks=pytest.mark.slow)], ids=["one value", "three values"])
def cases(request):
    """foreign_files.cases with a number of values for each leaf."""
    return functools.partial(foreign_files.cases, values=request.param)


def _random(kind):
    if kind in MODELS:
        return random_model(kind)
    return transformers.AutoModelForCausalLM.from_config(DECODERS[kind])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """kind -> a directory of Hugging Face."""
    folder = tmp_path_factory.mktemp("models")
    made = {}

    def model(kind):
        if kind not in made:
            made[kind] = write(_random(kind), folder / kind, max_shard_size="20KB")
        return made[kind]

    return model


@pytest.fixture(scope="module")
def checkpoints(models, tmp_path_factory):
    """A checkpoint of mt and one of Megatron-LM."""
    folder = tmp_path_factory.mktemp("checkpoints")
    assert run("checkpoint", "convert", models("gpt2"), folder / "mt") == 0
    assert run("checkpoint", "convert", models("gpt2"), folder / "megatron", "--format", "torch") == 0
    return folder


@pytest.fixture
def copied(tmp_path):
    return lambda folder: shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True)


def generate(folder):
    return lambda: run(
        "generate", "--load", folder, "--prompts", "w5 w6", "--tokens-to-generate", 1, "--greedy"
    )


def inspect(folder):
    return lambda: run("checkpoint", "inspect", folder)


ARCHITECTURES = [
    "gpt2",
    "llama",
    "mistral",
    "qwen2_moe",
    "mamba2",
    "bert",
    "t5",
    "gpt_neox",
    "llama with yarn",
]


def config_json(kind, folder, cases):
    file = folder / "config.json"
    command = generate(folder) if kind in ("gpt2", "llama") else inspect(folder)
    assert command() == 0
    return survive(cases(json.loads(file.read_text()), as_json), file, command)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2_moe", "mamba2", "t5"])
def test_config_json(kind, models, copied):
    one = functools.partial(foreign_files.cases, values=1)
    assert config_json(kind, copied(models(kind)), one)[2] > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_value_of_config_json(kind, models, copied):
    every = functools.partial(foreign_files.cases, exhaustive=True)
    assert config_json(kind, copied(models(kind)), every)[2] > 100


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_embd", 10**9), ("n_layer", 10**7), ("vocab_size", 10**9), ("n_positions", 10**9), ("n_inner", 10**9),
     ("n_head", 10**9), ("n_layer", 99_999)],
)  # fmt: skip
def test_sizes_are_compared_with_the_headers_of_the_weights(setting, value, models, copied):
    folder = copied(models("gpt2"))
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    for command in (generate(folder), inspect(folder)):
        one = [(setting, json.dumps({**settings, setting: value}).encode())]
        assert survive(iter(one), file, command) == {2: 1}


FILES_OF_TOKENIZERS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
]


@pytest.mark.parametrize("name", FILES_OF_TOKENIZERS)
def test_the_files_of_a_tokenizer(name, models, copied, cases):
    folder = copied(models("gpt2"))
    file = folder / name
    if not file.exists():
        file.write_text(
            json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "eos_token_id": [2]})
        )
    tree = json.loads(file.read_text())
    survive(cases(tree, as_json), file, generate(folder))


@pytest.mark.slow
def test_every_leaf_of_a_tokenizer_json(models, copied):
    file = copied(models("gpt2")) / "tokenizer.json"
    ended = survive(
        foreign_files.cases(json.loads(file.read_text()), as_json, exhaustive=True),
        file,
        generate(file.parent),
    )
    assert ended[2] > 500


def test_a_token_far_beyond_the_others(models, copied):
    folder = copied(models("gpt2"))
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    tree["added_tokens"].append({**tree["added_tokens"][-1], "content": "far", "id": 2**31})
    found = [("id", as_json(tree))]
    tree["added_tokens"][-1]["id"] = 2**31 - 1
    assert survive(iter([*found, ("id", as_json(tree))]), file, generate(folder)) == {2: 2}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """(JSONL of documents, a byte-level BPE trained on them)."""
    folder = tmp_path_factory.mktemp("documents")
    texts = [
        f"The {word} fox number {n} runs over the hill and rests."
        for n in range(20)
        for word in ("old", "red")
    ]
    file = folder / "in.jsonl"
    file.write_text("".join(json.dumps({"id": str(n), "text": t}) + "\n" for n, t in enumerate(texts)))
    assert (
        run("data", "train-tokenizer", "--input", file, "--output", folder / "tok", "--vocab-size", 300) == 0
    )
    return file, folder / "tok"


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_the_files_of_a_byte_level_tokenizer(name, documents, copied, tmp_path, cases):
    source, tokenizer = documents
    folder = copied(tokenizer)
    out = ["--input", source, "--output-prefix", tmp_path / "out" / "p", "--overwrite", "--workers", 1]
    if name == "vocab.json":
        choice = ["--vocab-file", folder / "vocab.json", "--merge-file", folder / "merges.txt"]
    else:
        choice = ["--tokenizer-model", folder]
    command = lambda: run("data", "tokenize", *choice, *out)
    assert command() == 0
    file = folder / name
    ended = survive(cases(json.loads(file.read_text()), as_json, most=1), file, command)
    assert 2 in ended


def test_the_index_of_safetensors(models, copied, cases):
    folder = copied(models("llama"))
    file = folder / "model.safetensors.index.json"
    ended = survive(cases(json.loads(file.read_text()), as_json), file, inspect(folder))
    assert ended[2] > 10


def test_the_header_of_safetensors(models, copied, cases):
    folder = copied(models("gpt2"))
    file = sorted(folder.glob("*.safetensors"))[0]
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]

    def dump(tree):
        return as_json(tree)

    found = (
        (name, len(text).to_bytes(8, "little") + text + body) for name, text in cases(header, dump, most=1)
    )
    ended = survive(found, file, generate(folder))
    assert ended[2] > 30


@pytest.mark.parametrize("name", ["config.yaml", "state.json", "tokenizer/tokenizer_config.json"])
def test_a_checkpoint_of_ours(name, checkpoints, copied, cases):
    folder = copied(checkpoints / "mt")
    file = folder / name
    dump = as_yaml if name.endswith(".yaml") else as_json
    tree = yaml.safe_load(file.read_text())
    command = generate(folder)
    if name != "state.json":  # its digests are of a stranger, too
        state = json.loads((folder / "state.json").read_text())
        state["files"] = [f for f in state["files"] if f["name"] != name]
        (folder / "state.json").write_text(json.dumps(state))
    assert command() == 0
    ended = survive(cases(tree, dump), file, command)
    assert ended[2] > 5


@pytest.mark.parametrize(
    ("setting", "value"), [("num_layers", 10**7), ("hidden_size", 10**9), ("vocab_size", 10**9)]
)
def test_sizes_are_compared_with_the_metadata(setting, value, checkpoints, copied):
    folder = copied(checkpoints / "mt")
    state = json.loads((folder / "state.json").read_text())
    state["files"] = [f for f in state["files"] if f["name"] != "config.yaml"]
    (folder / "state.json").write_text(json.dumps(state))
    file = folder / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["model"][setting] = value
    assert survive(iter([(setting, as_yaml(tree))]), file, generate(folder)) == {2: 1}


def test_the_settings_in_a_checkpoint_of_megatron(checkpoints, copied, tmp_path):
    folder = copied(checkpoints / "megatron")
    file = folder / "release" / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    values = [None, True, "x", [], {}, -1, 1e30, 2**31, 10**5000, torch.zeros(3)]

    def found():
        for number, name in enumerate(vars(state["args"])):
            for value in (values[(number + n) % len(values)] for n in (0, 3, 5, 8)):
                args = type(state["args"])(**{**vars(state["args"]), name: value})
                torch.save({**state, "args": args}, tmp_path / "pt")
                yield f"{name} = {type(value)}", (tmp_path / "pt").read_bytes()
        for name in state:
            for value in values:
                torch.save({**state, name: value}, tmp_path / "pt")
                yield f"{name} = {type(value)}", (tmp_path / "pt").read_bytes()
        endless = {}
        endless["decoder"] = endless
        wide = {"x": torch.zeros(1)}
        for _ in range(60):
            wide = {"a": wide, "b": wide}
        for name, weights in {
            "endless": endless,
            "wide": wide,
            "strides": {"embedding.word_embeddings.weight": torch.zeros(1).expand(10**9, 10**6)},
            "meta": {"embedding.word_embeddings.weight": torch.empty(10**9, 10**6, device="meta")},
            "number": {"embedding.word_embeddings.weight": 1},
        }.items():
            torch.save({**state, "model": weights}, tmp_path / "pt")
            yield name, (tmp_path / "pt").read_bytes()

    ended = survive(found(), file, inspect(folder))
    assert ended[2] > 30


@pytest.mark.parametrize("format", ["torch", "megatron_torch_dist"])
def test_sizes_in_the_settings_of_megatron(format, models, checkpoints, tmp_path):
    folder = tmp_path / "copy"
    assert run("checkpoint", "convert", models("gpt2"), folder, "--format", format) == 0
    (file,) = [*folder.rglob("common.pt"), *folder.rglob("model_optim_rng.pt")]
    state = torch.load(file, weights_only=False)
    sizes = ["num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "kv_channels"]
    sizes += ["max_position_embeddings", "padded_vocab_size", "num_experts"]
    values = [(name, size) for name in sizes for size in (10**9, 10**7, 99_999)]
    values += [("hybrid_override_pattern", "M" * 10**7), ("hybrid_layer_pattern", "*-" * 50_000)]
    values += [
        ("moe_layer_freq", "([1]*10**9)"),
        ("moe_layer_freq", 10**9),
        ("moe_layer_freq", [1] * 100_000),
    ]

    def found():
        for name, value in values:
            args = argparse.Namespace(**{**vars(state["args"]), "num_experts": 4, name: value})
            torch.save({**state, "args": args}, tmp_path / "pt")
            yield f"{name} = {str(value)[:20]}", (tmp_path / "pt").read_bytes()

    assert survive(found(), file, inspect(folder)) == {2: len(values)}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A sequence classifier of Hugging Face."""
    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=7, max_position_embeddings=16, **sizes)
    config.id2label = {0: "fine", 1: "rude"}
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def score(folder, line=b'{"text": "a b"}'):
    def command():
        sys.stdin = io.TextIOWrapper(io.BytesIO(line))
        return run("eval", "score", "--classifier", folder)

    return command


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_the_files_of_a_classifier(name, classifier, copied):
    file = copied(classifier) / name
    assert score(file.parent)() == 0
    one = foreign_files.cases(json.loads(file.read_text()), as_json, values=1, most=1)
    assert survive(one, file, score(file.parent))[2] > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_every_value_in_the_files_of_a_classifier(name, classifier, copied):
    file = copied(classifier) / name
    every = foreign_files.cases(json.loads(file.read_text()), as_json, exhaustive=True)
    assert survive(every, file, score(file.parent))[2] > 20


@pytest.mark.parametrize("value", [-1, 0, 1, 3, 10**4, 10**9])
@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "vocab_size", "hidden_size", "max_position_embeddings", "intermediate_size"]
)
def test_sizes_of_a_classifier_are_those_of_its_weights(name, value, classifier, copied):
    file = copied(classifier) / "config.json"
    settings = json.loads(file.read_text())
    one = [(name, as_json({**settings, name: value}))]
    assert survive(iter(one), file, score(file.parent)) == {2: 1}


def test_labels_of_a_classifier_are_those_of_its_weights(classifier, copied):
    file = copied(classifier) / "config.json"
    settings = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("id2label", "label2id")}
    one = [("num_labels", as_json({**settings, "num_labels": 10**6}))]
    assert survive(iter(one), file, score(file.parent)) == {2: 1}


def test_the_weights_of_a_classifier(classifier, copied):
    file = copied(classifier) / "model.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    found = list(damaged(raw, 16))
    for name in [n for n in header if n != "__metadata__"][:6]:
        less = as_json({n: t for n, t in header.items() if n != name})
        found.append((f"without {name}", len(less).to_bytes(8, "little") + less + raw[8 + size :]))
    assert survive(iter(found), file, score(file.parent))[2] > 10


def test_the_tracker_of_megatron(checkpoints, copied):
    folder = copied(checkpoints / "megatron")
    texts = ["", "x", "-1", "1e30", "9" * 5000, "²", "٣", "../..", "1\0", "[" * 10**6, "\x1b[31m", "0" * 300]
    found = [(text[:20], text.encode()) for text in texts] + [("bytes", b"\xff")]
    assert survive(iter(found), folder / "latest_checkpointed_iteration.txt", inspect(folder)) == {
        2: len(found)
    }


def test_the_manifest_of_documents(documents, tmp_path, cases):
    source, _ = documents
    folder = tmp_path / "clean"
    clean = ["data", "clean", "--rules", "whitespace", "--workers", 1, "--input", source, "--output", folder]
    assert run(*clean) == 0
    reads = ["data", "stats", "--input", folder, "--output", tmp_path / "out", "--overwrite"]
    for name in ("manifest.json", "run.json"):
        file = folder / name
        tree = json.loads((folder / "manifest.json").read_text())
        for command in (
            lambda: run(*reads),
            lambda: run(*clean),
            lambda: run("data", "why", "3", "--run-dir", folder),
        ):
            kept = folder.with_name("kept")
            shutil.copytree(folder, kept)
            survive(cases(tree, as_json, most=1), file, command, allowed=(0, 2, 3))
            shutil.rmtree(folder)
            kept.rename(folder)


def test_the_logs_of_a_stage(documents, tmp_path, cases):
    source, _ = documents
    folder = tmp_path / "clean"
    rules = ["--rules", "length max_chars=50"]
    assert run("data", "clean", *rules, "--workers", 1, "--input", source, "--output", folder) == 0
    (file,) = (folder / "removed").iterdir()
    log = file.read_text()
    line = json.loads(log.splitlines()[3])
    command = lambda: run("data", "why", line["id"], "--run-dir", folder)
    assert command() == 0
    found = ((name, text + b' "id":"' + line["id"].encode() + b'"\n') for name, text in cases(line, as_json))
    assert survive(found, file, command)[2] > 10
    assert survive(cases(line, as_json), file, command)[2] > 10
    look = lambda: run("data", "look", folder, "--dropped", "--count", 99)
    others = log.replace(log.splitlines()[3], "").strip().encode() + b"\n"
    assert survive(((name, others + text) for name, text in cases(line, as_json)), file, look)[2] > 10
    file.write_text(log)
    assert look() == 0
    tree = json.loads((folder / "manifest.json").read_text())
    for command in (look, lambda: run("data", "look", folder)):
        survive(cases(tree, as_json, most=1), folder / "manifest.json", command)


def test_the_manifest_of_tokens(documents, tmp_path, cases):
    source, tokenizer = documents
    prefix = tmp_path / "p"
    assert (
        run("data", "tokenize", "--tokenizer-model", tokenizer, "--input", source, "--output-prefix", prefix)
        == 0
    )
    file = tmp_path / "p.manifest.json"
    tree = json.loads(file.read_text())
    ended = survive(
        cases(tree, as_json, most=1), file, lambda: run("data", "verify", f"{prefix}_text_document")
    )
    assert ended[2] > 20


@pytest.fixture
def pipeline(documents, tmp_path):
    source, _ = documents
    tree = {
        "run_dir": str(tmp_path / "run"),
        "stages": {
            "clean": {"run": "data clean", "input": [str(source)], "rules": ["whitespace"], "workers": 1},
            "stats": {"run": "data stats", "input": ["${clean}"]},
            "report": {"run": "report", "run_dir": "${run_dir}"},
        },
    }
    (tmp_path / "p.yaml").write_bytes(as_yaml(tree))
    return tmp_path / "p.yaml", tree


def test_a_pipeline(pipeline, cases):
    file, tree = pipeline
    ended = survive(cases(tree, as_yaml), file, lambda: run("run", file, "--dry-run"))
    assert ended[2] > 20
    ended = survive(cases(tree, as_yaml, most=1), file, lambda: run("run", file), allowed=(0, 2, 3))


def test_what_a_report_reads(pipeline, tmp_path, cases):
    file, _ = pipeline
    assert run("run", file) == 0
    folder = tmp_path / "run"
    command = lambda: run("report", folder, "--output", tmp_path / "page")
    listing = folder / "pipeline.json"
    assert survive(cases(json.loads(listing.read_text()), as_json), listing, command)[2] > 20
    listing.write_bytes(as_json([{"name": "train", "verb": "train", "output": str(folder / "clean")}]))
    manifest = folder / "clean" / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree |= {
        "train_loss": 2.0,
        "valid_loss": 2.5,
        "unigram_entropy": 4.0,
        "tokens_per_second": 1000,
        "curve": [[1, 3.0], [2, 2.0]],
        "valid_curve": [[2, 2.5]],
        "scores": {"acc": 0.5, "of": {"task": 1}},
        "samples": [{"prompt": "a", "text": "b"}],
        "rows": [{"name": "x", "tokens": 3}],
    }
    manifest.write_bytes(as_json(tree))
    assert command() == 0
    assert survive(cases(tree, as_json, most=1), manifest, command)[2] > 50


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "dataset_dict.json"])
def test_a_saved_dataset(name, tmp_path, cases):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": ["one two three"] * 3})
    folder = tmp_path / "saved"
    if name == "dataset_dict.json":
        datasets.DatasetDict({"train": data}).save_to_disk(str(folder))
    else:
        data.save_to_disk(str(folder))
    out = tmp_path / "out"
    command = lambda: run("data", "stats", "--input", folder, "--output", out, "--overwrite")
    survive(
        cases(json.loads((folder / name).read_text()), as_json), folder / name, command, allowed=(0, 2, 3)
    )


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """Data `a`, `b`, `c`, their database `db` with cells, and `near`, the neighbours of samples."""
    from mt.retro.build import build_db
    from mt.retro.sample_neighbors import neighbors

    folder = tmp_path_factory.mktemp("databases")
    for seed, name in enumerate("abc"):
        small_databases.write(folder / name, small_databases.texts(40, seed, 8))
    data = {"data": ("a", "b"), "num_neighbors": 2, "index": "IVF4,Flat"}
    build_db(small_databases.database_settings(folder, **data))
    neighbors(small_databases.neighbor_settings(folder))
    return folder


COMMANDS = {
    "db": ["inspect", "db", "--chunk", 3, "--chunk", 0],
    "near": ["inspect", "near", "--sample", 3],
    "verify": ["verify", "db"],
}


def of_database(root, name):
    """A command that reads a database; its maker has told the true sizes and digests of all files."""
    words = [root / word if word in ("db", "near") else word for word in COMMANDS[name]]

    def command():
        for file in (root / "db/manifest.json", root / "near/manifest.json"):
            try:
                tree = json.loads(file.read_text())
                for output in tree["outputs"]:
                    path = file.parent / output["name"]
                    output |= {"bytes": path.stat().st_size, "xxh3": file_digest(path)}
                file.write_bytes(as_json(tree))
            except (ValueError, LookupError, TypeError, OSError, RecursionError):
                pass  # it is the file that this case is about
        return run("retro", *words)

    return command


def test_a_manifest_names_no_folder_to_write_to(databases, copied, tmp_path):
    root = copied(databases)
    file = root / "near/manifest.json"
    tree = json.loads(file.read_text())
    tree["draws"]["data"]["data_cache_path"] = str(tmp_path / "elsewhere")
    file.write_bytes(as_json(tree))
    assert of_database(root, "near")() == 0
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["db", "near"])
def test_the_manifest_of_a_database(name, databases, copied, monkeypatch, tmp_path, cases):
    monkeypatch.chdir(tmp_path)
    root = copied(databases)
    file = root / name / "manifest.json"
    command = of_database(root, name)
    assert command() == 0
    assert survive(cases(json.loads(file.read_text()), as_json, most=1), file, command)[2] > 30


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("db/chunks.npy", "db"),
        ("db/neighbors.npy", "db"),
        ("db/chunks.npy", "near"),
        ("db/chunks.npy", "verify"),
        ("db/neighbors.npy", "verify"),
        ("near/train.npy", "near"),
    ],
)
def test_the_arrays_of_a_database(file, name, databases, copied):
    root = copied(databases)
    command = of_database(root, name)
    assert command() == 0
    found = array_cases(np.load(root / file))
    assert survive(found, root / file, command)[2] > 20


@pytest.mark.parametrize(
    "index",
    [
        "IVF4_HNSW32,SQ8",
        "PCA8,IVF4,PQ4x4",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Flat", "IVF4,Flat", "HNSW32")),
    ],
)
def test_the_index_of_a_database(index, tmp_path):
    from mt.retro.index import build_index, nearest, open_index, training_sample

    file, vectors = tmp_path / "index.faiss", np.random.default_rng(0).random((700, 16), np.float32)
    np.save(tmp_path / "block.npy", vectors)
    sample = training_sample(index, [(700, 1)], None, 0)
    build_index(file, tmp_path / "trained", index, [tmp_path / "block.npy"], sample, 1)

    def search():
        try:
            opened = open_index(file, 4, 16, 700, 16)
            nearest(opened, vectors[:9], 5, np.empty((0, 3), np.int64))
        except UserError:
            return 2
        return 0

    assert search() == 0
    assert survive(damaged(file.read_bytes(), 300), file, search)[2] > 20
