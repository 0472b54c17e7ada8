import faiss
import numpy as np
import pytest

from mt.core.config import UserError
from mt.retro import index
from mt.retro.index import (
    build_index,
    check_index,
    choose_index,
    choose_nprobe,
    index_bytes,
    is_lossless,
    nearest,
    open_index,
    search_seconds,
    stored_vectors,
    training_sample,
)

DIMENSION = 16


def blocks_of(folder, vectors, size=100):
    paths = []
    for start in range(0, len(vectors), size):
        paths.append(folder / f"{start:05d}.npy")
        np.save(paths[-1], vectors[start : start + size])
    return paths


def built(folder, vectors, spec, threads=1, nprobe=1):
    build_index(
        folder / "index.faiss",
        folder / "trained.faiss",
        spec,
        blocks_of(folder, vectors),
        training_sample(spec, [(len(vectors), 1)], None, 0),
        threads,
    )
    return open_index(folder / "index.faiss", nprobe, 256)


def clustered(count, seed=0, clusters=20):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(clusters, DIMENSION))
    vectors = centers[rng.integers(0, clusters, count)] + 0.3 * rng.normal(size=(count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_loop(vectors, queries, own, k):
    """Distances to the k nearest that are not in a query's own ranges."""
    found = []
    for i, query in enumerate(queries.astype(np.float64)):
        distances = ((vectors.astype(np.float64) - query) ** 2).sum(1)
        for _, first, past in own[own[:, 0] == i]:
            distances[first:past] = np.inf
        found.append(np.sort(distances)[:k])
    return np.array(found)


def documents_of(count, size):
    """The range of its own document for each vector; documents have `size` vectors."""
    first = np.arange(count) // size * size
    return np.stack([np.arange(count), first, np.minimum(first + size, count)], axis=1)


@pytest.mark.parametrize(("spec", "nprobe"), [("Flat", 1), ("IVF8,Flat", 8), ("IVF8_HNSW8,Flat", 8)])
@pytest.mark.parametrize("size", [1, 7, 150])
def test_neighbours_equal_those_of_a_loop_and_are_never_from_the_own_document(tmp_path, spec, nprobe, size):
    vectors, own = clustered(500), documents_of(500, size)
    distances, ids = nearest(built(tmp_path, vectors, spec, nprobe=nprobe), vectors, 10, own)
    assert ids.dtype == np.int64
    assert not ((ids >= own[:, 1:2]) & (ids < own[:, 2:])).any()
    np.testing.assert_allclose(distances, by_loop(vectors, vectors, own, 10), atol=1e-5)
    np.testing.assert_allclose(((vectors[ids] - vectors[:, None]) ** 2).sum(-1), distances, atol=1e-5)
    assert all(len(set(row)) == 10 for row in ids.tolist())


def test_a_vector_with_a_long_document_finds_all_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "RESULTS_AT_ONCE", 64)
    rng = np.random.default_rng(0)
    book = np.ones((300, DIMENSION), np.float32) + 1e-3 * rng.normal(size=(300, DIMENSION)).astype(np.float32)
    vectors = np.concatenate([book, clustered(30)])
    own = np.array([[i, 0, 300] for i in range(300)] + [[i, i, i + 1] for i in range(300, 330)])
    distances, ids = nearest(built(tmp_path, vectors, "Flat"), vectors, 5, own)
    assert (ids[:300] >= 300).all()
    np.testing.assert_allclose(distances, by_loop(vectors, vectors, own, 5), atol=1e-4)


def test_missing_neighbours_are_minus_one(tmp_path):
    vectors = clustered(12)
    distances, ids = nearest(built(tmp_path, vectors, "Flat"), vectors, 20, documents_of(12, 5))
    assert ((ids >= 0).sum(1) == [7] * 10 + [10] * 2).all()
    assert (ids[:10, 7:] == -1).all()
    assert np.isinf(distances[:10, 7:]).all()
    assert not np.isinf(distances[:10, :7]).any()


def test_a_vector_may_have_several_own_documents_or_none(tmp_path):
    vectors = clustered(200)
    rng = np.random.default_rng(1)
    own = np.array(
        [
            (i, first, min(first + rng.integers(0, 9), 200))
            for i in range(0, 200, 2)
            for first in range(0, 200, 10 + i % 5)
        ]
    )
    distances, ids = nearest(built(tmp_path, vectors, "Flat"), vectors, 10, own)
    np.testing.assert_allclose(distances, by_loop(vectors, vectors, own, 10), atol=1e-5)
    assert not any(((ids[i] >= first) & (ids[i] < past)).any() for i, first, past in own)
    assert (ids[1::2, 0] == np.arange(1, 200, 2)).all()


def test_a_search_without_an_own_document_may_find_everything(tmp_path):
    vectors = clustered(50)
    ids = nearest(built(tmp_path, vectors, "Flat"), vectors, 1, np.zeros((0, 3), np.int64))[1]
    assert (ids[:, 0] == np.arange(50)).all()


def test_the_default_index_above_the_limit_finds_95_of_100_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "FLAT_BELOW", 1000)
    vectors = clustered(20_000, clusters=500)
    spec = choose_index(len(vectors), DIMENSION)
    assert spec == "IVF512,Flat"
    check_index(spec, len(vectors), DIMENSION)
    queries, own = vectors[::100], np.zeros((0, 3), np.int64)
    distances, _ = nearest(built(tmp_path, vectors, spec, nprobe=choose_nprobe(spec)), queries, 10, own)
    exact = by_loop(vectors, queries, own, 10)
    assert (distances <= exact[:, -1:] + 1e-6).mean() >= 0.95


@pytest.mark.parametrize("spec", ["Flat", "IVF16,Flat", "IVF16_HNSW8,Flat", "HNSW8,Flat"])
def test_an_index_has_the_same_bytes_on_any_number_of_threads(tmp_path, spec):
    vectors, seen = clustered(1500), set()
    for threads in (1, 2, 2):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        built(folder, vectors, spec, threads)
        seen.add((folder / "index.faiss").read_bytes())
    assert len(seen) == 1


def test_an_index_that_learns_a_rotation_has_the_same_bytes_on_any_number_of_threads(tmp_path):
    """Faiss itself gives other bytes with three threads than with one, in 384 dimensions."""
    vectors = np.random.default_rng(0).normal(size=(1000, 384)).astype(np.float32)
    seen = set()
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        built(folder, vectors, "PCA64,Flat", threads)
        seen.add((folder / "index.faiss").read_bytes())
    assert len(seen) == 1


def test_an_index_resumes_from_its_training_with_the_same_bytes(tmp_path):
    built(tmp_path, clustered(1500), "IVF16,Flat")
    whole, trained = (tmp_path / "index.faiss").read_bytes(), (tmp_path / "trained.faiss").stat().st_mtime_ns
    (tmp_path / "index.faiss").unlink()
    built(tmp_path, clustered(1500), "IVF16,Flat")
    assert (tmp_path / "index.faiss").read_bytes() == whole
    assert (tmp_path / "trained.faiss").stat().st_mtime_ns == trained


def test_every_default_index_has_enough_chunks_for_its_training():
    for count in [1, 49_999, 50_000, 70_000, 131_071, 10**6, 10**7, 10**8, 10**10]:
        check_index(choose_index(count, 384), count, 384)
    assert choose_index(49_999, 384) == "Flat"
    assert choose_index(50_000, 384) == "IVF1024,Flat"
    assert choose_index(10**8, 384) == "IVF32768_HNSW32,SQ8"
    assert choose_index(5 * 10**8, 384) == "OPQ64_256,IVF65536_HNSW32,PQ64"
    assert choose_index(10**8, 64) == "IVF32768_HNSW32,SQ8"
    assert choose_index(16 * 10**9, 384) == "OPQ32_128,IVF262144_HNSW32,PQ32"
    assert [choose_nprobe(f"IVF{n},Flat") for n in (16, 512, 1024, 65536)] == [16, 128, 192, 1536]
    assert [choose_nprobe(f"OPQ64_256,IVF{n},PQ64") for n in (512, 65536)] == [64, 1024]


def test_an_index_is_trained_on_a_random_sample_of_the_datasets_by_weight():
    sample = training_sample("IVF4,Flat", [(1000, 3), (2000, 1), (10, 1)], 100, seed=1)
    assert (np.diff(sample) > 0).all()
    assert [
        int(((sample >= a) & (sample < b)).sum()) for a, b in [(0, 1000), (1000, 3000), (3000, 3010)]
    ] == [60, 20, 10]
    assert sample[59] > 900
    assert (sample == training_sample("IVF4,Flat", [(1000, 3), (2000, 1), (10, 1)], 100, seed=1)).all()
    assert (sample != training_sample("IVF4,Flat", [(1000, 3), (2000, 1), (10, 1)], 100, seed=2)).any()
    assert len(training_sample("Flat", [(1000, 1000)], None, seed=1)) == 1000


@pytest.mark.parametrize("spec", ["Flat", "IVF16,Flat", "IVF16_HNSW8,Flat"])
def test_a_lossless_index_returns_its_vectors(tmp_path, spec):
    vectors = clustered(1500)
    assert is_lossless(spec)
    assert not is_lossless("IVF16,SQ8")
    assert (stored_vectors(built(tmp_path, vectors, spec), 100, 700) == vectors[100:700]).all()


def test_a_graph_search_uses_the_requested_candidate_list(tmp_path):
    vectors = clustered(1500)
    (tmp_path / "g").mkdir()
    for spec in ("HNSW8,Flat", "IVF16_HNSW8,Flat"):
        built(tmp_path / "g", vectors, spec)
        index = open_index(tmp_path / "g" / "index.faiss", 2, 77)
        inner = faiss.downcast_index(index.quantizer) if "IVF" in spec else index
        assert inner.hnsw.efSearch == 77
        for path in (tmp_path / "g").iterdir():
            path.unlink()


def test_an_index_that_needs_more_chunks_is_refused_with_a_smaller_one():
    with pytest.raises(
        UserError,
        match=(
            r"index = 'IVF4096,Flat' learns 4,096 centroids .* needs 159,744 chunks, but there are 60,000;"
            r" use --index IVF1024,Flat$"
        ),
    ):
        check_index("IVF4096,Flat", 60_000, 384)
    with pytest.raises(UserError, match=r"'IVF1k,PQ48' learns 1,024"):
        check_index("IVF1k,PQ48", 10_000, 384)
    with pytest.raises(
        UserError, match=r"'PQ48' learns 256 centroids .* but there are 100; use --index Flat$"
    ):
        check_index("PQ48", 100, 384)


def test_an_index_string_that_faiss_does_not_know_is_refused_with_faiss_reason():
    with pytest.raises(
        UserError,
        match=(
            r"index = 'IVFx': Faiss cannot make it for vectors of 384 numbers \(could not parse index string"
            r" IVFx\); use"
        ),
    ):
        check_index("IVFx", 10, 384)
    with pytest.raises(UserError, match="should be a multiple of the number of subquantizers"):
        check_index("PQ7", 10_000, 384)


def test_a_truncated_index_file_is_refused(tmp_path):
    built(tmp_path, clustered(100), "Flat")
    path = tmp_path / "index.faiss"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"index.faiss: Faiss cannot read it .*build it again"):
        open_index(path, 1, 256)


@pytest.mark.parametrize("spec", ["Flat", "IVF16,Flat", "IVF16,SQ8", "HNSW8,Flat"])
def test_the_estimated_size_is_about_that_of_the_file(tmp_path, spec):
    built(tmp_path, clustered(2000), spec)
    assert index_bytes(spec, 2000, DIMENSION) == pytest.approx(
        (tmp_path / "index.faiss").stat().st_size, rel=0.15
    )


def test_the_number_of_threads_is_restored(tmp_path):
    """Faiss and torch may share it; a pipeline would otherwise train on one thread after the database."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        vectors = np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32)
        np.save(tmp_path / "block.npy", vectors)
        search_seconds("Flat", 1, 10, 100, 8)
        build_index(
            tmp_path / "i.faiss",
            tmp_path / "t.faiss",
            "Flat",
            [tmp_path / "block.npy"],
            training_sample("Flat", [(64, 1)], None, seed=0),
            1,
        )
        nearest(open_index(tmp_path / "i.faiss", 1, 16), vectors[:2], 2, np.empty((0, 3), np.int64))
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


def _saved(path, made):
    faiss.write_index(made, str(path))
    return path


def _with_cells(vectors, numbers=None):
    made = faiss.index_factory(DIMENSION, "IVF4,Flat")
    made.train(vectors)
    made.add_with_ids(vectors, np.arange(len(vectors)) if numbers is None else numbers)
    return made


@pytest.mark.parametrize("name", ["lists", "victim", "/dev/zero"])
def test_an_index_that_names_another_file_is_refused(tmp_path, monkeypatch, name):
    """Faiss maps whatever the name leads to, and the process ends where that is too short."""
    monkeypatch.chdir(tmp_path)
    vectors = np.random.default_rng(0).random((300, DIMENSION), np.float32)
    made = _with_cells(vectors)
    inverted = faiss.extract_index_ivf(made)
    lists = faiss.OnDiskInvertedLists(4, inverted.code_size, "lists.data")
    lists.merge_from(inverted.invlists, 0)
    inverted.replace_invlists(lists, False)
    raw = _saved(tmp_path / "index.faiss", made).read_bytes()
    (tmp_path / "victim").write_bytes(b"precious")
    named = [len(text).to_bytes(8, "little") + text for text in (b"lists.data", name.encode())]
    assert raw.count(named[0]) == 1
    if name != "lists":
        (tmp_path / "index.faiss").write_bytes(raw.replace(*named))
    with pytest.raises(UserError, match=r"index\.faiss: "):
        open_index(tmp_path / "index.faiss", 4, 16, 300, DIMENSION)
    with pytest.raises(UserError, match=r"index\.faiss: "):
        index._read(tmp_path / "index.faiss")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_an_index_with_numbers_of_its_own_is_refused_where_it_is_searched(tmp_path):
    vectors = np.random.default_rng(0).random((300, DIMENSION), np.float32)
    numbered = faiss.IndexIDMap2(faiss.IndexFlatL2(DIMENSION))
    numbered.add_with_ids(vectors, np.arange(300) + 10**12)
    for made in (
        numbered,
        _with_cells(vectors, np.arange(300) + 10**12),
        _with_cells(vectors, np.full(300, -5)),
    ):
        opened = open_index(_saved(tmp_path / "index.faiss", made), 4, 16, 300, DIMENSION)
        with pytest.raises(UserError, match=r"index\.faiss: gives vector (-5|1,000,000,000,\d+) of 300"):
            nearest(opened, vectors[:3], 2, np.empty((0, 3), np.int64))


def test_vectors_are_taken_only_from_indices_that_store_them(tmp_path):
    """Faiss ends the process over vectors of others, as those of IVF4,PQ4x4fs."""
    vectors = np.random.default_rng(0).random((300, DIMENSION), np.float32)
    for text in ("IVF4,PQ4x4fs", "SQ8", "HNSW8"):
        made = faiss.index_factory(DIMENSION, text)
        made.train(vectors)
        made.add(vectors)
        opened = open_index(_saved(tmp_path / "index.faiss", made), 4, 16, 300, DIMENSION)
        with pytest.raises(UserError, match="not the index that its database records"):
            stored_vectors(opened, 0, 300)
    opened = open_index(_saved(tmp_path / "index.faiss", _with_cells(vectors, np.arange(300) + 300)), 4, 16)
    with pytest.raises(UserError, match="Faiss cannot read its vectors"):
        stored_vectors(opened, 0, 300)
