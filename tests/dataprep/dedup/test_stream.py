"""`mt data dedup --stream` as a command, compared with the batch command; killed; Redis killed."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.tests import forked
from mt.tests.dataprep.dedup.test_dedup import corpus, lines, write

COMMAND = [sys.executable, "-m", "mt", "data", "dedup", "--stream"]


def stream(records, *flags):
    """The ended command."""
    data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    return forked.run("data", "dedup", "--stream", *flags, stdin=data)


def parsed(data):
    return [json.loads(line) for line in data.splitlines()]


def batch(tmp_path, records, **settings):
    """(documents kept, {id: line of removed/}) of the batch command that keeps the first."""
    source = write(tmp_path / "in.jsonl", records)
    how = {"survivor": "first", "workers": 1, "overwrite": True, **settings}
    dedup(DedupConfig(input=(source,), output=str(tmp_path / "batch"), **how))
    return lines(tmp_path / "batch"), {r["id"]: r for r in lines(tmp_path / "batch/removed")}


@pytest.mark.parametrize("settings", [{}, {"ngram_unit": "char"}, {"verify": False, "bands": 9, "rows": 3}])
def test_verdict_survivor_and_similarity_are_those_of_the_last_document_of_a_batch(tmp_path, settings):
    records = corpus(seed=3, families=12)
    flags = {"verify": ["--no-verify"], "ngram_unit": ["--ngram-unit", "char"], "bands": ["--bands", 9]}
    given = [flag for name in settings for flag in flags.get(name, ["--rows", 3])]
    ended = stream(records, "--output", tmp_path / "logs", *given)
    assert ended.returncode == 0, ended.stderr
    removed = {r["id"]: r for r in lines(tmp_path / "logs")}
    assert parsed(ended.stdout) == [r for r in records if r["id"] not in removed]
    assert {r["reason"] for r in removed.values()} == {"exact", "near"}
    for last in range(1, len(records), 3):
        _, there = batch(tmp_path, records[: last + 1], **settings)
        name = records[last]["id"]
        assert removed.get(name) == there.get(name), name
    assert removed.keys() <= batch(tmp_path, records, **settings)[1].keys()


def test_a_template_gets_the_verdicts_of_the_batch_command(tmp_path):
    """More documents than a bucket is compared with."""
    words = [f"w{n}" for n in range(40)]
    records = [
        {"id": f"d{i}", "text": " ".join([*words, *(f"own{i}x{n}" for n in range(i % 7))])} for i in range(60)
    ]
    settings = {"ngram": 1, "threshold": 0.93}
    removed = parsed(stream(records, "--output", tmp_path / "logs", "--ngram", 1, "--threshold", 0.93).stdout)
    kept, _ = batch(tmp_path, records, **settings)
    assert removed == kept


def test_exact_copies_and_urls_give_the_outcome_of_the_batch_command(tmp_path):
    records = [
        {**record, "id": f"a{i}", "url": f"http{'s' * (i % 2)}://a.org/{i % 11}"}
        for i, record in enumerate(corpus(seed=4, families=10))
    ]
    records.append({"id": "none", "text": "no address"})
    records.append({"id": "nor this", "text": "one"})
    for method in ("exact", "url"):
        ended = stream(records, "--method", method, "--output", tmp_path / method)
        kept, removed = batch(tmp_path, records, method=method)
        assert parsed(ended.stdout) == kept
        assert {r["id"]: r for r in lines(tmp_path / method)} == removed


def heed_interrupts():
    """Of the child: a shell starts commands in the background with SIGINT ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_document_is_answered_while_the_stream_goes_on():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(COMMAND, **pipes, preexec_fn=heed_interrupts) as process:
        for number in range(3):
            line = json.dumps({"id": str(number), "text": f"document {number}"}).encode() + b"\n"
            process.stdin.write(line)
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == json.loads(line)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.decode().splitlines() == [
        "mt: interrupted; the lines that were written stay, but the index was in memory: the next run knows"
        " none of them"
    ]


def test_redis_is_killed_and_started_again_in_the_middle(redis_server, tmp_path):
    records = corpus(seed=5, families=25)
    expected = stream(records, "--output", tmp_path / "memory").stdout
    flags = ["--index", redis_server.url, "--output", str(tmp_path / "logs")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *flags], **pipes) as process:
        kept, removed = b"", tmp_path / "logs/removed.jsonl"
        for number, record in enumerate(records):
            if number in (20, 50):  # what is sent now finds no server
                redis_server.kill()
            process.stdin.write(json.dumps(record).encode() + b"\n")
            process.stdin.flush()
            if number in (20, 50):
                redis_server.start()
            if record["id"] in {r["id"] for r in parsed(expected)}:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                kept += line
        rest, errors = process.communicate()
    assert (process.returncode, kept + rest) == (0, expected), errors
    assert removed.read_text() == (tmp_path / "memory/removed.jsonl").read_text()


def test_a_killed_command_loses_no_document_when_all_are_sent_again(redis_server, tmp_path):
    records = corpus(seed=6, families=25)
    expected = parsed(stream(records).stdout)
    data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    flags = ["--index", redis_server.url]
    written = []
    for stop in (700, 9_000, 21_000):
        reading, writing = os.pipe()
        with subprocess.Popen([*COMMAND, *flags], stdin=subprocess.PIPE, stdout=writing) as process:
            os.close(writing)
            process.stdin.write(data[:stop])
            process.stdin.flush()
            with os.fdopen(reading, "rb") as out:
                written.append(out.readline())
                process.kill()
                written += [line for line in out if line.endswith(b"\n")]
    ended = stream(records, *flags)
    assert ended.returncode == 0, ended.stderr
    written += ended.stdout.splitlines(keepends=True)
    found = {json.loads(line)["id"]: json.loads(line) for line in written if line}
    assert sorted(found) == sorted(r["id"] for r in expected)
    assert all(found[r["id"]] == r for r in expected)


def test_records_that_cannot_be_read_end_the_stream_or_are_set_aside(tmp_path):
    good = {"id": "a", "text": "one"}
    bad = [{"id": "b"}, {"id": "c", "text": "two", "deep": json.loads("[" * 900 + "]" * 900)}]
    failed = stream([good, *bad])
    assert (failed.returncode, parsed(failed.stdout)) == (2, [good])
    assert failed.stderr.startswith(b"mt: stdin, line 2: has no key 'text'")
    assert stream([good, bad[1]]).stderr.startswith(b"mt: document 'c': is nested deeper than")
    skipped = stream([*bad, good], "--on-error", "skip")
    assert (skipped.returncode, parsed(skipped.stdout)) == (3, [good])
    assert b"mt: stdin, line 1: has no key 'text'" in skipped.stderr
    stream([*bad, good], "--on-error", "skip", "--output", tmp_path / "logs")
    rejects = parsed((tmp_path / "logs/rejects.jsonl").read_bytes())
    assert [r["place"] for r in rejects] == ["line 1", "document c"]


def test_a_document_without_an_id_is_refused_where_the_index_outlives_the_command(redis_server):
    ended = stream([{"text": "one"}], "--index", redis_server.url)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        b"mt: stdin, line 1: has no 'id', by which a document that is sent again is known"
    )
    assert parsed(stream([{"text": "one"}]).stdout) == [{"id": "stdin:0", "text": "one"}]


def test_settings_that_a_stream_does_not_read_are_refused():
    ended = stream([], "--survivor", "longest", "--format", "parquet", "--index", "redis://localhost/x")
    assert ended.returncode == 2
    message = ended.stderr.decode()
    assert "survivor = longest: a stream keeps the first document" in message
    assert "format = parquet has no effect with --stream" in message
    assert "index = redis://localhost/x must be redis://HOST[:PORT]/DB" in message
