"""Tokenization, compared with bytes worked by hand, megatron-core's builder, and runs that were killed."""

import gzip
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.stats
import zstandard

from mt import cli
from mt.core import config
from mt.documents.files import KEY_REMEDY
from mt.indexed import build
from mt.indexed.build import TokenizeConfig, tokenize
from mt.indexed.format import IndexedDataset
from mt.tests.indexed.build_jobs import end_process, sleep_and_return_bytes, sleep_and_return_pid
from mt.tests.indexed.small_corpora import BYTES, files, prose, run, write


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of a few documents with a commit after each, so that small inputs have many batches."""
    monkeypatch.setattr(build, "SHARD_BYTES", 2000)
    monkeypatch.setattr(build, "START_SECONDS", -1.0)
    monkeypatch.setattr(build, "BATCH_BYTES", 2000)
    monkeypatch.setattr(build, "COMMIT_SECONDS", -1.0)


def test_tokens_are_the_bytes_of_the_documents_in_order_with_one_eod_each(tmp_path):
    records = [{"text": "ab"}, {"text": ""}, {"text": "cde"}]
    summary, data = run(tmp_path, records, append_eod=True)
    assert [s.tolist() for s in data] == [[97, 98, 0], [99, 100, 101, 0]]
    assert data.document_indices.tolist() == [0, 1, 1, 2]
    assert summary["counts"] == {
        "documents": 3,
        "sequences": 2,
        "tokens": 7,
        "empty": 1,
        "text_bytes": 5,
        "rejected": 0,
    }
    assert (data.dtype, summary["tokenizer"]["eod"]) == (np.uint16, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "p.jsonl",
        "p.manifest.json",
        "p_text_document.bin",
        "p_text_document.idx",
    ]


def test_a_list_of_texts_is_a_document_of_sequences_and_empty_ones_are_left_out(tmp_path):
    records = [{"text": ["ab", "", "c"]}, {"text": "d"}, {"text": []}, {"text": ["", "e", ""]}]
    _, data = run(tmp_path, records, append_eod=True)
    assert [s.tolist() for s in data] == [[97, 98], [99, 0], [100, 0], [101, 0]]
    assert data.document_indices.tolist() == [0, 2, 3, 3, 4]


def test_the_bytes_equal_those_of_megatrons_builder(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    records = prose(200)
    _, data = run(tmp_path, records, append_eod=True)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=data.dtype.type)
    for record in records:
        ids = list(record["text"].encode())
        builder.add_document([*ids, 0] if ids else [], [len(ids) + 1] if ids else [])
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert files(tmp_path / "p_text_document") == files(tmp_path / "theirs")


def documents_of(data):
    """The tokens of every sequence of every document."""
    ends = data.document_indices.tolist()
    return [[data[i].tolist() for i in range(a, b)] for a, b in itertools.pairwise(ends)]


def test_shuffled_documents_are_the_same_in_an_order_of_the_seed_in_all_pairs(tmp_path, small_batches):
    records = [{"text": [f"{n}", "x" * (n % 5)], "title": f"t{n}"} for n in range(200)]
    path = write(tmp_path / "in.jsonl", records)
    found = {}
    for name, seed in (("plain", None), ("one", 1), ("again", 1), ("two", 2)):
        how = {"json_keys": ("text", "title"), "append_eod": True, "shuffle_seed": seed, "workers": 1}
        prefix = str(tmp_path / name)
        tokenize(TokenizeConfig(input=(path,), output_prefix=prefix, **BYTES, **how))
        pairs = [IndexedDataset(f"{prefix}_{key}_document") for key in ("text", "title")]
        found[name] = list(zip(*map(documents_of, pairs)))
    assert found["one"] == found["again"]
    assert found["one"] != found["two"] != found["plain"] != found["one"]
    assert sorted(found["one"]) == sorted(found["two"]) == sorted(found["plain"])
    places = [found["plain"].index(document) for document in found["one"]]
    assert scipy.stats.spearmanr(places, range(200)).pvalue > 1e-3


def test_a_shuffle_that_is_stopped_anywhere_ends_with_the_same_bytes(tmp_path, monkeypatch):
    path = write(tmp_path / "in.jsonl", prose(50))
    how = {"input": (path,), **BYTES, "shuffle_seed": 3, "workers": 1}
    tokenize(TokenizeConfig(**how, output_prefix=str(tmp_path / "whole")))
    replace = os.replace
    for stop in range(2):  # before each of the two files is moved to its place
        moved = []

        def stopping(source, target, moved=moved, stop=stop):
            if str(target).endswith((".bin", ".idx")):
                if len(moved) == stop:
                    raise KeyboardInterrupt
                moved.append(target)
            replace(source, target)

        config = TokenizeConfig(**how, output_prefix=str(tmp_path / f"p{stop}"))
        monkeypatch.setattr(os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            tokenize(config)
        monkeypatch.setattr(os, "replace", replace)
        tokenize(config)
        assert files(tmp_path / f"p{stop}_text_document") == files(tmp_path / "whole_text_document")


def test_every_key_gives_its_own_pair(tmp_path):
    records = [{"title": "a", "text": "bc"}, {"title": "", "text": "d"}]
    run(tmp_path, records, json_keys=("title", "text"))
    assert [s.tolist() for s in IndexedDataset(tmp_path / "p_title_document")] == [[97]]
    assert [s.tolist() for s in IndexedDataset(tmp_path / "p_text_document")] == [[98, 99], [100]]


def test_workers_batches_and_file_formats_do_not_change_a_byte(tmp_path, small_batches):
    records = prose(300)
    _, _ = run(tmp_path, records, "one", append_eod=True)
    wanted = files(tmp_path / "one_text_document")
    raw = (tmp_path / "one.jsonl").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(raw))
    table = pyarrow.Table.from_pylist(records)
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet", row_group_size=20)
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "e.jsonl").write_bytes(b"\xef\xbb\xbf" + raw.replace(b"\n", b"\r\n\r\n"))
    for name in ("one.jsonl", "a.jsonl.gz", "b.jsonl.zst", "c.parquet", "d.parquet", "e.jsonl"):
        run(tmp_path, str(tmp_path / name), "again", append_eod=True, overwrite=True)
        assert files(tmp_path / "again_text_document") == wanted, name
    for name in ("one.jsonl", "b.jsonl.zst"):
        run(tmp_path, str(tmp_path / name), "workers", append_eod=True, workers=3, overwrite=True)
        assert files(tmp_path / "workers_text_document") == wanted, name


def test_results_are_in_order_whatever_time_each_takes(small_batches):
    batches = iter([build.InputBatch((), bytes=n) for n in range(100)])
    assert list(build._in_order(sleep_and_return_bytes, batches, 3, 4950)) == list(range(100))


def test_other_processes_are_started_only_if_enough_work_is_left(monkeypatch):
    alone = [os.getpid()] * 100
    batches = [build.InputBatch((), bytes=10)] * 100
    assert list(build._in_order(sleep_and_return_pid, iter(batches), 3, 1000)) == alone
    monkeypatch.setattr(build, "START_SECONDS", 0.05)
    assert list(build._in_order(sleep_and_return_pid, iter(batches), 1, 1000)) == alone
    found = list(build._in_order(sleep_and_return_pid, iter(batches), 3, 1000))
    assert found[0] == os.getpid()
    assert len(set(found)) > 1


def test_a_worker_that_dies_ends_the_run_with_one_line(small_batches):
    with pytest.raises(config.Failure, match=r"a worker process died.*run the same command again"):
        list(build._in_order(end_process, iter([build.InputBatch(())] * 50), 2, 0))


def test_a_run_that_stops_anywhere_resumes_to_the_same_bytes(tmp_path, small_batches, monkeypatch):
    """It stops before each batch, and between the renames at the end."""
    bad = b'{"text": null}\n'
    lines = (json.dumps(r).encode() + b"\n" for r in prose(60))
    (tmp_path / "in.jsonl").write_bytes(
        b"".join(itertools.chain.from_iterable((line, bad) for line in lines))
    )
    settings = {
        "input": (str(tmp_path / "in.jsonl"),),
        "workers": 1,
        "append_eod": True,
        "on_error": "skip",
        **BYTES,
    }
    whole = tokenize(TokenizeConfig(output_prefix=str(tmp_path / "whole"), **settings))
    assert whole["counts"]["rejected"] == 60
    config_ = TokenizeConfig(output_prefix=str(tmp_path / "p"), **settings)

    class Killed(BaseException):
        pass

    def kill_at(target, name, number):
        calls = itertools.count()
        original = getattr(target, name)

        def killing(*arguments):
            if next(calls) == number:
                raise Killed
            return original(*arguments)

        monkeypatch.setattr(target, name, killing)
        return original

    def stopped(target, name, number):
        original = kill_at(target, name, number)
        with pytest.raises(Killed):
            tokenize(config_)
        monkeypatch.setattr(target, name, original)

    stopped(build._TokenizeRun, "add", 0)
    for _ in range(3):
        stopped(build._TokenizeRun, "add", 1)  # each run completes one more batch
    stopped(build.shutil, "copyfileobj", 0)
    stopped(build.manifest, "record", 1)  # .bin and .idx are in place, the manifest is not
    stopped(build.manifest, "record", 0)
    sealed = tokenize(config_)
    assert sealed["counts"] == whole["counts"]
    assert files(tmp_path / "p_text_document") == files(tmp_path / "whole_text_document")
    assert (tmp_path / "p_rejects.jsonl").read_bytes() == (tmp_path / "whole_rejects.jsonl").read_bytes()
    assert not (tmp_path / ".p.partial").exists()
    assert tokenize(config_)["finished"] == sealed["finished"], "a finished run is up to date"


def test_processes_killed_at_random_moments_end_with_the_same_bytes(tmp_path):
    path = write(tmp_path / "in.jsonl", prose(40000))
    flags = ["--input", path, "--append-eod", "--tokenizer-type", "ByteLevelTokenizer", "--workers", "2"]
    script = (
        "import sys; from mt.indexed import build; build.BATCH_BYTES = 200_000; build.COMMIT_SECONDS = 0.0;"
        " build.START_SECONDS = -1.0; from mt import cli; cli.main(['data', 'tokenize', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, *flags, "--output-prefix"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    generator, kills = random.Random(1), 0
    for _ in range(4):
        process = subprocess.Popen(
            [*command, str(tmp_path / "p")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while (
            not (tmp_path / ".p.partial").exists() and process.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    ended = subprocess.run([*command, str(tmp_path / "p")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert files(tmp_path / "p_text_document") == files(tmp_path / "whole_text_document")


# Runs the command in forks until that many were killed. An output that finished before its kill is compared
# and removed, and the next fork begins again.
KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from mt import cli
from mt.indexed import build

build.BATCH_BYTES, build.COMMIT_SECONDS = 100_000, 0.0
moments, whole, prefix, *flags = sys.argv[1:]
generator, killed, ended = random.Random(2), 0, 0
while killed < int(moments):
    child = os.fork()
    if child == 0:
        try:
            cli.main(["data", "tokenize", *flags, "--output-prefix", prefix])
        finally:
            os._exit(0)
    time.sleep(generator.uniform(0, 0.15))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    if Path(f"{prefix}.manifest.json").exists():
        for suffix in ("bin", "idx"):
            ours, wanted = (Path(f"{p}_text_document.{suffix}").read_bytes() for p in (prefix, whole))
            assert ours == wanted, killed
        for path in Path(prefix).parent.glob(f"{Path(prefix).name}[._]*"):
            path.unlink()
        shutil.rmtree(Path(prefix).parent / f".{Path(prefix).name}.partial", ignore_errors=True)
        ended += 1
print("killed", killed, "times; ended", ended, "times")
"""


def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_bytes(tmp_path, monkeypatch):
    # as in KILLER, because the journal counts batches
    monkeypatch.setattr(build, "BATCH_BYTES", 100_000)
    path = write(tmp_path / "in.jsonl", prose(20000))
    flags = ["--input", path, "--append-eod", "--tokenizer-type", "ByteLevelTokenizer", "--workers", "1"]
    tokenize(
        TokenizeConfig(
            input=(path,), output_prefix=str(tmp_path / "whole"), append_eod=True, workers=1, **BYTES
        )
    )
    killer = [sys.executable, "-c", KILLER, "20", str(tmp_path / "whole"), str(tmp_path / "p"), *flags]
    ended = subprocess.run(killer, capture_output=True, text=True)
    assert "killed 20 times" in ended.stdout, ended.stderr
    tokenize(
        TokenizeConfig(input=(path,), output_prefix=str(tmp_path / "p"), append_eod=True, workers=1, **BYTES)
    )
    assert files(tmp_path / "p_text_document") == files(tmp_path / "whole_text_document")


def test_truncated_unfinished_work_is_refused_with_the_folder_to_remove(tmp_path, small_batches, monkeypatch):
    path = write(tmp_path / "in.jsonl", prose(200))
    with monkeypatch.context() as patch:
        patch.setattr(build._TokenizeRun, "finish", None)  # fails at the end of the work
        with pytest.raises(TypeError):
            run(tmp_path, path)
    (tmp_path / ".p.partial/p_text_document.bin").unlink()
    with pytest.raises(
        config.UserError,
        match=(
            r"p_text_document.bin: has lost bytes since the run before; remove the folder .*\.p\.partial and"
            r" run the same command again"
        ),
    ):
        run(tmp_path, path)
    shutil.rmtree(tmp_path / ".p.partial")
    assert run(tmp_path, path)[0]["counts"]["documents"] == 200


def test_a_bad_record_is_named_and_leaves_nothing_behind(tmp_path):
    records = [{"text": "a"}, {"body": "b"}, {"text": ["c", 4]}, {"text": 5}]
    with pytest.raises(
        config.UserError,
        match=r"p.jsonl, line 2: has no key 'text' \(it has 'body'\); name .*--json-keys\); mend it, ",
    ):
        run(tmp_path, records)
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]
    summary, data = run(tmp_path, records, on_error="skip")
    assert [s.tolist() for s in data] == [[97]]
    assert summary["counts"]["rejected"] == 3
    rejects = [json.loads(line) for line in (tmp_path / "p_rejects.jsonl").open()]
    assert [(r["place"], r["reason"]) for r in rejects] == [
        ("line 2", f"has no key 'text' (it has 'body'); {KEY_REMEDY}"),
        ("line 3", "'text' holds a number among its texts"),
        ("line 4", "'text' is a number, not a text"),
    ]


def test_settings_that_cannot_work_are_refused(tmp_path):
    with pytest.raises(config.UserError, match="json_keys names text twice"):
        run(tmp_path, [{"text": "a"}], json_keys=("text", "text"))
    for key in ("a/b", "/", "a\0b"):
        with pytest.raises(config.UserError, match=r"json_keys: .* cannot be part of a file's name"):
            run(tmp_path, [{"text": "a", key: "b"}], json_keys=("text", key))
    for prefix in ("", "out/", ".", ".."):
        with pytest.raises(config.UserError, match=r"output_prefix = .* names a folder"):
            TokenizeConfig(input=("a.jsonl",), output_prefix=prefix, **BYTES)
    with pytest.raises(config.UserError, match="contains no document that can be read \\(1 set aside\\)"):
        run(tmp_path, [{"text": None}], on_error="skip")
    vocabulary = {"vocab_file": str(tmp_path / "v.json"), "merge_file": str(tmp_path / "m.txt")}
    (tmp_path / "v.json").write_text('{"a": 0}')
    (tmp_path / "m.txt").write_text("")
    with pytest.raises(config.UserError, match="append_eod: the tokenizer has no end-of-document token"):
        run(tmp_path, [{"text": "a"}], append_eod=True, **vocabulary, tokenizer_type=None)


def test_every_tokenizer_flag_of_megatrons_script_is_accepted(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", [{"text": "1 2 3"}, {"text": "4"}])
    old = (
        f"data tokenize --input {path} --output-prefix {tmp_path / 'p'} --workers 1 --append-eod --partitions"
        " 1 --tokenizer-type NullTokenizer --vocab-size 100 --null-tokenizer-eod-id 0"
        " --null-tokenizer-pad-id -1 --tokenizer-metadata x.json --trust-remote-code --chat-template none"
        " --use-gigatoken --tokenizer-hf-no-use-fast --tokenizer-hf-no-include-special-tokens"
        " --tokenizer-sentencepiece-legacy --padded-vocab-size 128 --dataset-impl mmap"
    )
    assert cli.command(old.split()) == 0
    assert [s.tolist() for s in IndexedDataset(tmp_path / "p_text_document")] == [[1, 2, 3, 0], [4, 0]]
    assert (
        "--null-tokenizer-pad-id is accepted and not needed: texts are not padded" in capsys.readouterr().err
    )


def test_files_that_mt_did_not_write_are_not_overwritten(tmp_path):
    (tmp_path / "p_text_document.bin").write_bytes(b"precious")
    with pytest.raises(config.UserError, match=r"p_text_document.bin: exists already"):
        run(tmp_path, [{"text": "a"}])
    assert (tmp_path / "p_text_document.bin").read_bytes() == b"precious"
    run(tmp_path, [{"text": "a"}], overwrite=True)


def test_other_settings_need_another_output_or_overwrite(tmp_path):
    run(tmp_path, [{"text": "a"}])
    with pytest.raises(
        config.UserError, match="holds another run of `mt data tokenize` \\(append_eod was False, is True\\)"
    ):
        run(tmp_path, str(tmp_path / "p.jsonl"), append_eod=True)
    _, data = run(tmp_path, str(tmp_path / "p.jsonl"), append_eod=True, overwrite=True)
    assert data[0].tolist() == [97, 0]


def test_documents_begin_and_end_with_the_requested_tokens(tmp_path, bert_vocabulary):
    vocabulary = {"tokenizer_type": "BertWordPieceLowerCase", "vocab_file": bert_vocabulary}
    records = [{"text": ["one", "", "two"]}, {"text": ""}, {"text": "three"}, {"text": ["[SEP]"]}]
    one, two, three = 2028, 2048, 2093
    _, data = run(tmp_path, records, append_eod=True, prepend_bos=True, **vocabulary)
    assert [s.tolist() for s in data][:3] == [[101, one], [two, 102], [101, three, 102]]
    assert 102 not in data[3][:-1], "a literal is text"
    _, data = run(tmp_path, records, "begun", prepend_bos=True, allow_special=True, **vocabulary)
    assert [s.tolist() for s in data] == [[101, one], [two], [101, three], [101, 102]]
    _, data = run(
        tmp_path, [{"text": "one"}, {"text": "two"}], "plain", append_eod=True, prepend_bos=True, **vocabulary
    )
    assert [s.tolist() for s in data] == [[101, one, 102], [101, two, 102]]
    with pytest.raises(
        config.UserError, match="prepend_bos: the tokenizer has no beginning-of-sequence token"
    ):
        run(tmp_path, records, "none", prepend_bos=True)


def test_parquet_rows_without_a_text_are_rejected(tmp_path):
    table = pyarrow.table({"text": ["a", None, "c"], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    _, data = run(tmp_path, str(tmp_path / "in.parquet"), on_error="skip")
    assert [s.tolist() for s in data] == [[97], [99]]
    reject = json.loads((tmp_path / "p_rejects.jsonl").read_text())
    assert (reject["place"], reject["reason"], json.loads(reject["raw"])) == (
        "row 2",
        "'text' is null, not a text",
        {"text": None, "n": 2},
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [["a", "b"], ["c"]], "other": ["x", "y"]}), tmp_path / "lists.parquet"
    )
    _, data = run(tmp_path, str(tmp_path / "lists.parquet"), "lists", json_keys=("text", "other"))
    assert [s.tolist() for s in data] == [[97], [98], [99]]


def test_blank_lines_are_skipped(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n\n \n{"text": "b"}\r\n\r\n{"text": "c"}')
    _, data = run(tmp_path, str(tmp_path / "in.jsonl"))
    assert [s.tolist() for s in data] == [[97], [98], [99]]
