"""Bad input to any command: one line and exit code 2, or records set aside and exit code 3.

No partial output is left.
"""

import gzip
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from mt import cli
from mt.core.manifest import file_digest
from mt.tests import forked

# fmt: off
WORDS = [
    "the", "a", "river", "hill", "quick", "slow", "brown", "old", "fox", "dog", "runs",
    "rests", "near", "over", "under", "some", "fields", "of", "barley", "and", "then", "it", "stops",
]
# fmt: on


def text(seed, words=90):
    return " ".join(random.Random(seed).choices(WORDS, k=words)).capitalize() + "."


GOOD = [{"id": str(i), "text": text(i)} for i in range(60)]
BAD_LINES = {
    "malformed": (b'{"text": "cut', "malformed JSON"),
    "missing key": (b'{"body": "x"}', "has no key 'text'"),
    "null": (b'{"text": null}', "'text' is null"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "not UTF-8"),
    "too long": (b'{"text": "%s"}' % (b"x" * 10_000), "has 10,013 bytes, more than --max-record-bytes 9000"),
}
GPT2 = ["--tokenizer-type", "GPT2BPETokenizer"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A small byte-level BPE trained on the good documents."""
    folder = tmp_path_factory.mktemp("vocabulary")
    write(folder / "in.jsonl")
    assert (
        run(
            "data",
            "train-tokenizer",
            "--input",
            folder / "in.jsonl",
            "--output",
            folder / "tok",
            "--vocab-size",
            300,
        )
        == 0
    )
    return folder / "tok"


def write(path, bad: bytes | None = None):
    lines = [json.dumps(d).encode() for d in GOOD]
    if bad is not None:
        lines.insert(30, bad)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, arguments)))
    return end.value.code


def reads_documents(tmp_path, vocabulary):
    """Name -> command line of every command that reads raw documents."""
    out = tmp_path / "out"
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", vocabulary]
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"text": text("held out", 40)}) + "\n")
    return {
        "clean": ["data", "clean", "--preset", "prose", "--workers", 1, "--output", out],
        "dedup": ["data", "dedup", "--workers", 1, "--output", out],
        "holdout": ["data", "holdout", "--workers", 1, "--fraction", 0.2, "--output", out],
        "decontaminate": [
            "data",
            "decontaminate",
            "--workers",
            1,
            "--evaluation",
            evaluation,
            "--output",
            out,
        ],
        "train-tokenizer": ["data", "train-tokenizer", "--vocab-size", 300, "--output", out],
        "tokenize": ["data", "tokenize", *tokenizer, "--output-prefix", out / "p"],
        "stats": ["data", "stats", *tokenizer, "--output", out],
    }


COMMANDS = ["clean", "dedup", "holdout", "decontaminate", "train-tokenizer", "tokenize", "stats"]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_or_set_aside(tmp_path, vocabulary, capsys, name, kind):
    line, reason = BAD_LINES[kind]
    path = write(tmp_path / "in.jsonl", line)
    command = [*reads_documents(tmp_path, vocabulary)[name], "--input", path, "--max-record-bytes", 9000]
    assert run(*command) == 2
    message = capsys.readouterr().err.strip().split("\n")[-1]
    assert message.startswith(f"mt: {path}, line 31: ")
    assert reason in message
    assert not list((tmp_path / "out").rglob("manifest.json"))
    assert run(*command, "--on-error", "skip") == 3, capsys.readouterr().err
    rejects = [json.loads(x) for f in (tmp_path / "out").rglob("*rejects.jsonl") for x in f.open()]
    assert [(r["place"], reason in r["reason"]) for r in rejects] == [("line 31", True)]
    assert run(*command, "--on-error", "skip") == 3, "an up-to-date run reports records set aside too"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_empty_or_a_missing_file_is_named(tmp_path, vocabulary, capsys, name):
    command = reads_documents(tmp_path, vocabulary)[name]
    (tmp_path / "empty.jsonl").touch()
    assert run(*command, "--input", tmp_path / "empty.jsonl") == 2
    assert "empty.jsonl" in capsys.readouterr().err
    assert run(*command, "--input", tmp_path / "none.jsonl") == 2
    assert f"{tmp_path / 'none.jsonl'}: no such file" in capsys.readouterr().err


def broken_files(folder):
    """{name of a broken file: part of the message for it}."""
    data = write(folder / "good").read_bytes()
    compressed = {"cut.jsonl.gz": gzip.compress(data), "cut.jsonl.zst": zstandard.compress(data)}
    for name, content in compressed.items():
        (folder / name).write_bytes(content[: len(content) // 2])
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), folder / "other.parquet")
    (folder / "cut.parquet").write_bytes((folder / "other.parquet").read_bytes()[:-9])
    (folder / "surrogate.jsonl").write_bytes(b'{"text": "a \\ud83d b"}\n')
    (folder / "bytes.txt").write_bytes(b"caf\xe9")
    (folder / "blank.jsonl").write_bytes(b"\n \n")
    return {
        "cut.jsonl.gz": "the compressed data ends or breaks",
        "cut.jsonl.zst": "the compressed data ends or breaks",
        "other.parquet": "has no column 'text' (it has 'body')",
        "cut.parquet": "not a whole Parquet file",
        "surrogate.jsonl": "line 1: malformed JSON at column 13",
        "bytes.txt": "line 1: byte 3 of the file is not UTF-8",
        "blank.jsonl": "",
    }


@pytest.mark.parametrize("name", ["clean", "dedup", "decontaminate", "tokenize"])
def test_a_broken_file_gives_one_line_and_leaves_no_manifest(tmp_path, vocabulary, capsys, name):
    command = reads_documents(tmp_path, vocabulary)[name]
    for file, reason in broken_files(tmp_path).items():
        capsys.readouterr()
        assert run(*command, "--input", tmp_path / file) == 2, file
        (message,) = capsys.readouterr().err.strip().split("\n")
        assert reason in message
        assert not list((tmp_path / "out").rglob("*manifest.json"))
    assert run(*command, "--input", write(tmp_path / "in.jsonl")) == 0, "failed runs do not block the output"


@pytest.mark.parametrize("name", ["clean", "dedup", "tokenize"])
def test_an_output_of_another_run_is_refused(tmp_path, vocabulary, capsys, name):
    command = reads_documents(tmp_path, vocabulary)[name]
    assert run(*command, "--input", write(tmp_path / "a.jsonl")) == 0
    change = {"clean": ["--rules", "[]"], "dedup": ["--threshold", 0.9], "tokenize": ["--append-eod"]}[name]
    capsys.readouterr()
    other = (
        [*command, "--input", tmp_path / "a.jsonl", *change]
        if name != "clean"
        else [*command, "--input", write(tmp_path / "b.jsonl", b'{"text": "more"}')]
    )
    assert run(*other) == 2
    assert "holds another run" in capsys.readouterr().err
    assert run(*other, "--overwrite") == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_gives_one_line_and_the_next_run_gives_the_bytes_of_an_undisturbed_run(
    tmp_path, vocabulary, name
):
    """A limit on the size of files replaces a full disk: a write fails in the middle in the same way."""
    documents = tmp_path / "in.jsonl"
    documents.write_text("".join(json.dumps({"id": str(i), "text": text(i, 400)}) + "\n" for i in range(300)))
    command = [*reads_documents(tmp_path, vocabulary)[name], "--input", documents]
    if name in ("train-tokenizer", "stats"):
        limit = 200  # because their output is small
    else:
        limit = 60_000

    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    ended = forked.run(*command, before=small_disk)
    assert ended.returncode == 2, ended.stderr
    assert b"Traceback" not in ended.stderr
    assert b"ulimit -f" in ended.stderr.strip().split(b"\n")[-1]
    assert run(*command) == 0
    after_failure = digests(tmp_path / "out")
    for path in sorted((tmp_path / "out").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert run(*command) == 0
    assert digests(tmp_path / "out") == after_failure


@pytest.mark.slow
def test_a_full_disk_in_training_gives_one_line_and_the_same_command_resumes(tmp_path, vocabulary):
    tokenizer = ["--tokenizer-model", vocabulary]
    assert (
        run(
            "data",
            "tokenize",
            *tokenizer,
            "--input",
            write(tmp_path / "in.jsonl"),
            "--output-prefix",
            tmp_path / "p",
            "--append-eod",
        )
        == 0
    )
    command = [
        "train",
        "--data-path",
        tmp_path / "p_text_document",
        *tokenizer,
        "--save",
        tmp_path / "run",
        "--num-layers",
        1,
        "--hidden-size",
        64,
        "--num-attention-heads",
        2,
        "--seq-length",
        16,
        "--micro-batch-size",
        2,
        "--train-iters",
        3,
        "--split",
        "90,10,0",
        "--eval-iters",
        1,
    ]
    command = [sys.executable, "-m", "mt", *map(str, command)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "most likely the disk is full" in ended.stderr.strip().split("\n")[-1]
    assert not list((tmp_path / "run").glob("step_*"))
    assert subprocess.run(command, capture_output=True).returncode == 0


def digests(folder: Path) -> dict:
    return {
        str(p.relative_to(folder)): file_digest(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith("manifest.json")
    }


def test_a_vocabulary_that_does_not_match_the_merges_is_refused(tmp_path, vocabulary, capsys):
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\nq z\n")
    command = [
        "data",
        "tokenize",
        *GPT2,
        "--vocab-file",
        vocabulary / "vocab.json",
        "--merge-file",
        tmp_path / "merges.txt",
        "--input",
        write(tmp_path / "in.jsonl"),
        "--output-prefix",
        tmp_path / "p",
    ]
    assert run(*command) == 2
    message = capsys.readouterr().err
    assert "merges.txt" in message
    assert "vocab.json" in message
    assert not list(tmp_path.glob("p*.bin"))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("thresold: 0.8", "c.yaml: unknown setting thresold; did you mean threshold?"),
        ("threshold: high", "c.yaml: threshold = 'high': must be a number"),
        ("threshold: [", "not valid YAML"),
    ],
)
def test_a_bad_settings_file_is_named(tmp_path, capsys, yaml, message):
    (tmp_path / "c.yaml").write_text(yaml)
    assert (
        run(
            "data",
            "dedup",
            "--config",
            tmp_path / "c.yaml",
            "--input",
            write(tmp_path / "in.jsonl"),
            "--output",
            tmp_path / "o",
        )
        == 2
    )
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
