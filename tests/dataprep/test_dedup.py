"""Duplicates: against all pairs, against planted copies, and the same bytes whatever happens."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.config import UserError
from mt.dataprep import dedup as dedup_module
from mt.dataprep.dedup import DedupConfig, components, dedup


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def lines(folder):
    return [json.loads(line) for p in sorted(folder.glob("*.jsonl")) for line in p.read_text(encoding="utf-8").splitlines()]


def shingles(text, n=5):
    words = [w.lower() for w in re.findall(r"\w+", text)]
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 1.0


def corpus(seed=0, families=40):
    """Texts with exact copies, copies with other whitespace, and near copies of many degrees, shuffled."""
    rng = random.Random(seed)
    vocabulary = [f"word{i}" for i in range(3000)]
    texts = []
    for _ in range(families):
        words = rng.choices(vocabulary, k=rng.randint(3, 150))
        texts.append(" ".join(words))
        for _ in range(rng.randint(0, 4)):
            copy = list(words)
            for _ in range(rng.randint(0, 12)):
                copy[rng.randrange(len(copy))] = rng.choice(vocabulary)
            texts.append(rng.choice([" ", "\n"]).join(copy) + rng.choice(["", ".", " and more"]))
    rng.shuffle(texts)
    return [{"id": f"doc{i}", "text": t} for i, t in enumerate([*texts, "", "?!", " "])]


def run(tmp_path, records, name="out", **settings):
    source = write(tmp_path / "in.jsonl", records)
    manifest = dedup(DedupConfig(**{"input": (source,), "output": str(tmp_path / name), "workers": 1, **settings}))
    return manifest, lines(tmp_path / name), lines(tmp_path / name / "removed")


def test_clusters_are_those_of_exact_jaccard_over_all_pairs(tmp_path):
    rows = corpus()
    _, kept, removed = run(tmp_path, rows, bands=60, rows=3)  # bands enough that no pair at 0.7 is missed
    sets = {r["id"]: shingles(r["text"]) for r in rows}
    text = {r["id"]: r["text"] for r in rows}
    bare = {i: "".join(t.split()) for i, t in text.items()}
    leader = {i: i for i in text}

    def find(i):
        return i if leader[i] == i else find(leader[i])

    for a, b in itertools.combinations(text, 2):
        if bare[a] == bare[b] or (sets[a] and sets[b] and jaccard(sets[a], sets[b]) >= 0.7):
            leader[find(a)] = find(b)
    clusters = {}
    for i in text:
        clusters.setdefault(find(i), []).append(i)
    order = {r["id"]: n for n, r in enumerate(rows)}
    survivors = {c: min(members, key=lambda i: (-len(text[i]), order[i])) for c, members in clusters.items()}
    assert {r["id"] for r in kept} == set(survivors.values())
    assert len(removed) == len(rows) - len(kept) > 20
    for r in removed:
        assert r["survivor"] == survivors[find(r["id"])]
        assert r["reason"] == ("exact" if bare[r["id"]] == bare[r["survivor"]] else "near")
        assert r["similarity"] == pytest.approx(jaccard(sets[r["id"]], sets[r["survivor"]]), abs=1e-4)
    assert {"exact", "near"} == {r["reason"] for r in removed}


def test_the_first_of_a_cluster_survives_where_that_is_asked_for(tmp_path):
    rows = [{"id": "a", "text": "one two three four five six"}, {"id": "b", "text": "one  two three\nfour five six"}]
    assert [r["id"] for r in run(tmp_path, rows)[1]] == ["b"]
    assert [r["id"] for r in run(tmp_path, rows, "first", survivor="first")[1]] == ["a"]


def test_only_exact_copies_go_where_that_is_asked_for(tmp_path):
    manifest, _, removed = run(tmp_path, corpus(), method="exact")
    assert {r["reason"] for r in removed} == {"exact"}
    assert manifest["candidate_pairs"] == 0


def test_without_verification_every_proposed_pair_is_a_duplicate(tmp_path):
    manifest, _, _ = run(tmp_path, corpus(), bands=60, rows=3, verify=False)
    verified, _, _ = run(tmp_path, corpus(), "verified", bands=60, rows=3)
    assert manifest["near_pairs"] == manifest["candidate_pairs"] == verified["candidate_pairs"] > verified["near_pairs"]


def test_neither_workers_nor_ranges_nor_a_kill_change_a_byte(tmp_path, monkeypatch):
    rows = corpus(families=200)
    settings = {"shard_bytes": 1 << 16}
    first, _, _ = run(tmp_path, rows, "one", **settings)
    run(tmp_path, rows, "two", workers=2, **settings)
    monkeypatch.setattr(dedup_module, "RANGE_KEYS", 100)
    run(tmp_path, rows, "ranges", **settings)

    command = [sys.executable, "-m", "mt", "data", "dedup", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "killed"), "--workers", "1", "--shard-bytes", "65536"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed/parts/sign/00001.json").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def outputs(name):
        return {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in sorted((tmp_path / name).rglob("*.jsonl"))}

    assert len(outputs("one")) == len(first["outputs"]) > 6
    assert outputs("one") == outputs("two") == outputs("ranges") == outputs("killed")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "one"))


def test_many_documents_with_one_template_do_not_make_all_pairs(tmp_path):
    rows = [{"id": str(i), "text": " ".join(["a page of the same template that says nothing else at all"] * 3) + f" {i}"} for i in range(500)]
    manifest, kept, _ = run(tmp_path, rows)
    assert len(kept) == 1
    assert manifest["candidate_pairs"] < 500 * 499 / 2 / 4


def test_planted_copies_of_the_reviews_are_found(tmp_path, shared):
    source = shared / "data/corpus/reviews.jsonl"
    text = {r["id"]: r["text"] for r in map(json.loads, source.read_bytes().splitlines())}
    dedup(DedupConfig(input=(str(source),), output=str(tmp_path / "out"), workers=2))
    removed = lines(tmp_path / "out/removed")
    survivor = {r["id"]: r["survivor"] for r in removed}
    of = lambda i: survivor.get(i, i)
    found = {}
    for copy in map(json.loads, (shared / "data/corpus/reviews_duplicates.jsonl").read_bytes().splitlines()):
        a, b = copy["id"], copy["copy_of"]
        j = jaccard(shingles(text[a]), shingles(text[b]))
        kind = copy["kind"] if copy["kind"] == "exact" else "0.8" if j >= 0.8 else "0.7" if j >= 0.7 else "below"
        found.setdefault(kind, []).append(of(a) == of(b))
    assert np.mean(found["exact"]) == 1
    assert np.mean(found["0.8"]) >= 0.99
    assert np.mean(found["0.7"]) >= 0.95
    clusters = {}
    for r in removed:
        clusters.setdefault(r["survivor"], {r["survivor"]}).add(r["id"])
    right = [any(jaccard(shingles(text[r["id"]]), shingles(text[m])) >= 0.7 for m in clusters[r["survivor"]] - {r["id"]}) for r in removed]
    assert np.mean(right) >= 0.999


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))))))
def test_components_are_those_of_merging_sets(graph):
    count, edges = graph
    member = {i: {i} for i in range(count)}
    for a, b in edges:
        union = member[a] | member[b]
        for i in union:
            member[i] = union
    ends = np.array(edges, np.int64).reshape(-1, 2)
    assert components(count, ends[:, 0], ends[:, 1]).tolist() == [min(member[i]) for i in range(count)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0}, "threshold = 0 must lie above 0"),
        ({"bands": 3}, "bands = 3 and rows = None go together: give both or neither"),
        ({"ngram": 0}, "ngram = 0 must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        DedupConfig(input=("x.jsonl",), output=str(tmp_path), **settings)


def test_no_documents_at_all_is_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="no document is left"):
        dedup(DedupConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), workers=1))


def test_a_bad_record_is_named_or_set_aside_once(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": "a", "text": "same words here"}\n{"id": "b"}\n{"id": "c", "text": "same words here"}\n')
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: has no key 'text' \(it has 'id'\)"):
        dedup(DedupConfig(input=(str(path),), output=str(tmp_path / "out"), workers=1))
    manifest = dedup(DedupConfig(input=(str(path),), output=str(tmp_path / "skip"), workers=1, on_error="skip"))
    assert (manifest["counts"]["rejected"], manifest["counts"]["removed"], manifest["counts"]["documents"]) == (1, {"exact": 1}, 1)
