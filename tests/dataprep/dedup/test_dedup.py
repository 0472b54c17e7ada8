"""Deduplication, compared with all pairs and planted copies; killed runs; saved signatures."""

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

from mt.core.config import UserError
from mt.dataprep import stage
from mt.dataprep.dedup import dedup as dedup_module
from mt.dataprep.dedup import key_index, lsh
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.dedup.exact_keys import url_key


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def lines(folder):
    return [
        json.loads(line)
        for p in sorted(folder.glob("*.jsonl"))
        for line in p.read_text(encoding="utf-8").splitlines()
    ]


def shingles(text, n=5):
    words = [w.lower() for w in re.findall(r"\w+", text)]
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 1.0


def corpus(seed=0, families=40):
    """Texts with exact copies, copies with other whitespace, and near copies, shuffled."""
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


def run(tmp_path, records, name="out", rewrite=True, **settings):
    source = write(tmp_path / "in.jsonl", records) if rewrite else str(tmp_path / "in.jsonl")
    manifest = dedup(
        DedupConfig(**{"input": (source,), "output": str(tmp_path / name), "workers": 1, **settings})
    )
    return manifest, lines(tmp_path / name), lines(tmp_path / name / "removed")


def test_clusters_are_those_of_exact_jaccard_over_all_pairs(tmp_path):
    rows = corpus()
    _, kept, removed = run(tmp_path, rows, bands=60, rows=3)  # enough bands to miss no pair at 0.7
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


def test_the_first_document_of_a_cluster_survives_if_configured(tmp_path):
    rows = [
        {"id": "a", "text": "one two three four five six"},
        {"id": "b", "text": "one  two three\nfour five six"},
    ]
    assert [r["id"] for r in run(tmp_path, rows)[1]] == ["b"]
    assert [r["id"] for r in run(tmp_path, rows, "first", survivor="first")[1]] == ["a"]


def test_only_exact_copies_are_removed_with_method_exact(tmp_path):
    manifest, _, removed = run(tmp_path, corpus(), method="exact")
    assert {r["reason"] for r in removed} == {"exact"}
    assert manifest["candidate_pairs"] == 0


def test_without_verification_every_candidate_pair_is_a_duplicate(tmp_path):
    manifest, _, _ = run(tmp_path, corpus(), bands=60, rows=3, verify=False)
    verified, _, _ = run(tmp_path, corpus(), "verified", bands=60, rows=3)
    assert (
        manifest["near_pairs"]
        == manifest["candidate_pairs"]
        == verified["candidate_pairs"]
        > verified["near_pairs"]
    )


def outputs(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.jsonl"))}


def test_workers_ranges_and_compiled_loops_do_not_change_a_byte(tmp_path, monkeypatch):
    rows = corpus(families=200)
    settings = {"shard_bytes": 1 << 16, "bands": 8, "rows": 3}
    first, _, _ = run(tmp_path, rows, "one", **settings)
    run(tmp_path, rows, "ranges", range_keys=150, **settings)
    monkeypatch.setattr(lsh, "ONE_PROCESS_DOCUMENTS", 0)  # every step in several processes
    monkeypatch.setattr(lsh, "ONE_PROCESS_BYTES", 0)
    monkeypatch.setattr(lsh, "ONE_PROCESS_PAIRS", 0)
    run(tmp_path, rows, "two", workers=2, **settings)
    monkeypatch.setattr(dedup_module, "COMPILE_FROM", 0)
    monkeypatch.setattr(lsh, "COMPILE_FROM", 0)
    run(tmp_path, rows, "compiled", **settings)
    assert len(outputs(tmp_path / "one")) == len(first["outputs"]) > 6
    assert (
        outputs(tmp_path / "one")
        == outputs(tmp_path / "two")
        == outputs(tmp_path / "ranges")
        == outputs(tmp_path / "compiled")
    )


@pytest.mark.parametrize("step", ["sign", "search/3/near", "clusters/labels/1"])
def test_tasks_finished_before_a_kill_are_not_run_again(tmp_path, step):
    rows = corpus(families=120)
    settings = {"shard_bytes": 1 << 16, "range_keys": 150, "bands": 4, "rows": 3}
    manifest, _, _ = run(tmp_path, rows, "whole", **settings)
    assert 300 < manifest["counts"]["rows_in"] <= 450  # three ranges of keys
    command = [
        sys.executable,
        "-m",
        "mt",
        "data",
        "dedup",
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "killed"),
        "--workers",
        "1",
        *itertools.chain(*((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items())),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    folder = tmp_path / "killed/parts" / step
    while process.poll() is None and not (folder / "00001.json").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/manifest.json").exists()
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed/parts").rglob("*.json")}
    assert len(done) > 1
    at_the_end = {}
    discard = stage.discard_parts

    def record_and_discard(run):
        at_the_end.update({p: p.stat().st_mtime_ns for p in done})
        discard(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "discard_parts", record_and_discard)
        run(tmp_path, rows, "killed", rewrite=False, **settings)
    assert at_the_end == done  # no finished task ran again
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "killed")
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))


def split_runs(tmp_path, records, share, settings):
    """Deduplicates the last documents against the saved signatures of the first, whose text is deleted."""
    half = int(len(records) * share)
    _, old_kept, _ = run(tmp_path, records[:half], "old", save_signatures=True, **settings)
    for text in [*(tmp_path / "old").glob("*.jsonl"), *(tmp_path / "old/removed").glob("*.jsonl")]:
        text.unlink()
    _, kept, removed = run(tmp_path, records[half:], "new", against=(str(tmp_path / "old"),), **settings)
    return half, old_kept, kept, removed


@pytest.mark.parametrize(
    "settings",
    [
        {"bands": 60, "rows": 3},
        {"bands": 40, "rows": 2, "shard_bytes": 1 << 16},
        {"method": "exact"},
        {"bands": 30, "rows": 4, "ngram_unit": "char"},
    ],
)
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_saved_signatures_remove_what_the_old_text_would_remove(tmp_path, settings, share):
    rows = corpus(seed=3, families=80)
    _, together, gone = run(tmp_path, rows, "together", survivor="first", **settings)
    half, old_kept, kept, removed = split_runs(tmp_path, rows, share, {"survivor": "first", **settings})
    new = {r["id"] for r in rows[half:]}
    assert [r for r in together if r["id"] in new] == kept
    assert removed
    # a removed document names its own survivor
    assert {r["survivor"] for r in removed} <= {r["id"] for r in old_kept + kept}
    if settings.get("ngram_unit") != "char":
        text, of = {r["id"]: r["text"] for r in rows}, {r["id"]: r["survivor"] for r in gone}
        for r in removed:
            cluster = [i for i in text if of.get(i, i) == of[r["id"]]]
            assert any(
                r["similarity"] == round(jaccard(shingles(text[r["id"]]), shingles(text[i])), 4)
                for i in cluster
                if i != r["id"]
            )


def test_several_old_outputs_are_compared_with_and_each_run_saves_its_own_signatures(tmp_path):
    rows = corpus(seed=4, families=60)
    near = {"bands": 40, "rows": 3, "survivor": "first", "save_signatures": True}
    parts = [rows[:100], rows[100:150], rows[150:]]
    kept = []
    for n, part in enumerate(parts):
        kept += run(
            tmp_path, part, f"crawl{n}", against=tuple(str(tmp_path / f"crawl{i}") for i in range(n)), **near
        )[1]
    assert kept == run(tmp_path, rows, "together", **near)[1]


def test_saved_signatures_name_every_document_or_its_survivor_in_every_shard(tmp_path):
    rows = corpus(seed=5, families=300)
    near = {"bands": 30, "rows": 3, "save_signatures": True, "shard_bytes": 1 << 16}
    run(tmp_path, rows[:250], "old", **near)
    _, kept, removed = run(tmp_path, rows[250:], "new", against=(str(tmp_path / "old"),), **near)
    survivor = {r["id"]: r["survivor"] for r in removed}
    stems = sorted((tmp_path / "new/signatures").glob("*.names.npy"))
    assert len(stems) > 2
    names = []
    for stem in stems:
        ends = np.load(str(stem).replace(".names.", ".name_ends."))
        text = np.load(stem).tobytes()
        names += [text[a:b].decode() for a, b in itertools.pairwise(ends)]
    assert names == [survivor.get(r["id"], r["id"]) for r in rows[250:]]
    assert {r["survivor"] for r in removed} & {r["id"] for r in rows[:250]}
    assert {r["survivor"] for r in removed} & {r["id"] for r in kept}


def test_one_document_per_url_is_kept(tmp_path):
    urls = [
        "http://a.org/x",
        "https://A.org:443/x/#top",
        "https://a.org/X",
        "https://a.org/x?q=1",
        None,
        "",
        "http://[",
        "http://[",
    ]
    rows = [{"id": str(i), "text": "t" * (i + 1), "link": u} for i, u in enumerate(urls)]
    manifest, kept, removed = run(tmp_path, rows, method="url", url_key="link", survivor="first")
    assert [r["id"] for r in kept] == ["0", "2", "3", "4", "5", "6"]
    assert removed == [
        {"id": "1", "reason": "url", "survivor": "0"},
        {"id": "7", "reason": "url", "survivor": "6"},
    ]
    assert manifest["without_url"] == 2
    with pytest.raises(
        UserError,
        match="url_key = url: no document has a text under this key; name the key of the URLs with --url-key",
    ):
        run(tmp_path, rows, "none", method="url")
    assert url_key("https://a.org:8443/x") != url_key("https://a.org/x") == url_key("http://a.org/x/")


def test_character_ngrams_are_compared_if_configured(tmp_path):
    a = "今日は天気がいいから散歩に行きましょうと友達が言いました"
    rows = [
        {"id": "a", "text": a},
        {"id": "b", "text": a.replace("友達", "先生")},
        {"id": "c", "text": "まったく別の文章でありますからこのままのこる"},
    ]
    assert len(run(tmp_path, rows)[1]) == 3  # three words, all different
    _, kept, removed = run(tmp_path, rows, "char", ngram_unit="char", ngram=2, bands=50, rows=2)
    assert [r["id"] for r in kept] == ["a", "c"]
    grams = [{r["text"][i : i + 2] for i in range(len(r["text"]) - 1)} for r in rows]
    assert removed == [
        {"id": "b", "reason": "near", "survivor": "a", "similarity": round(jaccard(grams[0], grams[1]), 4)}
    ]


def test_many_documents_with_one_template_are_not_all_paired(tmp_path):
    rows = [
        {
            "id": str(i),
            "text": " ".join(["a page of the same template that says nothing else at all"] * 3) + f" {i}",
        }
        for i in range(500)
    ]
    manifest, kept, _ = run(tmp_path, rows)
    assert len(kept) == 1
    assert manifest["candidate_pairs"] < 500 * 499 / 2 / 4


def test_the_pair_window_finds_nearly_all_near_duplicates_within_a_large_template(tmp_path, monkeypatch):
    # 400 pages with the same template: their similarity of 0.64 makes them no duplicates, but each band has
    # dozens of pages with the same key. 100 pages have a copy with some edited words (0.74), hundreds of
    # pages away.
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(5000)]
    template = rng.choices(vocabulary, k=220)
    pages = [template + rng.choices(vocabulary, k=60) for _ in range(400)]
    copies = {}
    for page in rng.sample(range(400), 100):
        copy = list(pages[page])
        for place in rng.sample(range(280), 9):
            copy[place] = rng.choice(vocabulary)
        copies[len(pages)] = page
        pages.append(copy)
    text = [" ".join(words) for words in pages]
    rows = [{"id": str(i), "text": text[i]} for i in rng.sample(range(len(text)), len(text))]
    copies = {a: b for a, b in copies.items() if jaccard(shingles(text[a]), shingles(text[b])) >= 0.7}
    assert len(copies) > 80

    def found(name):
        manifest, _, removed = run(tmp_path, rows, name)
        survivor = {r["id"]: r["survivor"] for r in removed}
        return manifest["candidate_pairs"], np.mean(
            [survivor.get(str(a), str(a)) == survivor.get(str(b), str(b)) for a, b in copies.items()]
        )

    candidates, recall = found("window")
    monkeypatch.setattr(key_index, "PAIR_WINDOW", len(rows))
    all_candidates, most = found("all pairs")
    assert candidates < all_candidates / 3
    assert recall >= most - 0.03 > 0.9


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
        kind = (
            copy["kind"] if copy["kind"] == "exact" else "0.8" if j >= 0.8 else "0.7" if j >= 0.7 else "below"
        )
        found.setdefault(kind, []).append(of(a) == of(b))
    assert np.mean(found["exact"]) == 1
    assert np.mean(found["0.8"]) >= 0.99
    assert np.mean(found["0.7"]) >= 0.95
    clusters = {}
    for r in removed:
        clusters.setdefault(r["survivor"], {r["survivor"]}).add(r["id"])
    right = [
        any(
            jaccard(shingles(text[r["id"]]), shingles(text[m])) >= 0.7
            for m in clusters[r["survivor"]] - {r["id"]}
        )
        for r in removed
    ]
    assert np.mean(right) >= 0.999


def test_an_input_without_documents_is_refused(tmp_path):
    (tmp_path / "in.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="no document is left"):
        dedup(DedupConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), workers=1))


def test_an_unreadable_record_is_named_or_logged_once(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'{"id": "a", "text": "same words here"}\n{"id": "b"}\n{"id": "c", "text": "same words here"}\n'
    )
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: has no key 'text' \(it has 'id'\)"):
        dedup(DedupConfig(input=(str(path),), output=str(tmp_path / "out"), workers=1))
    manifest = dedup(
        DedupConfig(input=(str(path),), output=str(tmp_path / "skip"), workers=1, on_error="skip")
    )
    assert (
        manifest["counts"]["rejected"],
        manifest["counts"]["removed"],
        manifest["counts"]["documents"],
    ) == (1, {"exact": 1}, 1)
