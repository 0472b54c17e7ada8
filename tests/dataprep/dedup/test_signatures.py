"""Sketches, compared with the similarity of whole sets, and saved signatures that cannot be compared."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.dedup import signatures
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.dedup.key_index import ShardKeys


@given(st.integers(0, 1500), st.integers(0, 1500), st.integers(0, 1500), st.integers(0, 1 << 30))
def test_sketches_give_the_exact_similarity_of_small_sets_and_an_estimate_for_large_ones(
    common, only_a, only_b, seed
):
    hashes = np.random.default_rng(seed).integers(0, 1 << 64, common + only_a + only_b, np.uint64)
    a, b = hashes[: common + only_a], np.concatenate((hashes[:common], hashes[common + only_a :]))
    similarity = signatures.sketch_jaccard(signatures.sketch(a), signatures.sketch(b))
    exact = common / len(hashes) if len(hashes) else 1.0
    whole = max(len(a), len(b)) < signatures.SKETCH_SIZE
    # 0.12: more than five standard errors
    assert similarity == pytest.approx(exact, abs=1e-9 if whole else 0.12)


def test_a_sketch_is_the_lowest_distinct_hashes_without_their_lower_bits():
    hashes = [5 << 32 | 7, 3 << 32, 5 << 32, 1 << 63]
    found = signatures.sketch(np.array(hashes, np.uint64))
    assert (found.tolist(), found.dtype) == ([3, 5, 1 << 31], np.uint32)
    many = np.random.default_rng(0).integers(0, 1 << 64, 1000, np.uint64)
    assert signatures.sketch(many).tolist() == sorted({h >> 32 for h in many.tolist()})[:512]


def test_estimates_have_the_documented_standard_error():
    random, estimates = np.random.default_rng(1), []
    for _ in range(200):
        hashes = random.integers(0, 1 << 64, 6000, np.uint64)
        a, b = hashes[:5100], hashes[900:]  # 4200 in common
        estimates.append(signatures.sketch_jaccard(signatures.sketch(a), signatures.sketch(b)))
    assert abs(np.mean(estimates) - 0.7) < 0.02 / np.sqrt(200) * 3
    assert 0.015 < np.std(estimates) < 0.025


def test_saved_sketches_are_read_by_row(tmp_path):
    sketches = [np.array([1, 2], np.uint32), np.empty(0, np.uint32), np.array([7], np.uint32)]
    signatures.save_sketches(tmp_path / "00000", sketches)
    of_row = signatures.saved_sketches(ShardKeys(tmp_path / "00000", 3))
    assert [of_row(row).tolist() for row in range(3)] == [[1, 2], [], [7]]


def test_a_sketch_is_made_of_the_shingles_of_its_text_alone():
    shingles = np.array([3 << 32, 1 << 32, 1 << 32, 2 << 32], np.uint64)
    found = signatures.batch_sketches(shingles, np.array([0, 3, 3, 4]))
    assert [s.tolist() for s in found] == [[1, 3], [], [2]]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Finished runs: without signatures, and with those of two methods."""
    folder = tmp_path_factory.mktemp("outputs")
    rows = [{"id": str(i), "text": f"the text of the document {i} of this corpus"} for i in range(5)]
    (folder / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, settings in {
        "plain": {},
        "exact": {"method": "exact", "save_signatures": True},
        "near": {"save_signatures": True},
    }.items():
        dedup(
            DedupConfig(
                input=(str(folder / "in.jsonl"),),
                output=str(folder / name),
                workers=1,
                threshold=1.0,
                **settings,
            )
        )
    return folder


@pytest.mark.parametrize(
    ("against", "settings", "message"),
    [
        ("nowhere", {}, "nowhere: contains no signatures; name the output of a finished"),
        ("plain", {}, "plain: contains no signatures"),
        (
            "exact",
            {},
            "exact: its signatures were made with method = exact, which cannot be compared with near; use"
            " --method exact",
        ),
        (
            "near",
            {"ngram": 4},
            "near: its signatures have ngram = 5 there and 4 here; give both runs the same settings",
        ),
        ("near", {"bands": 7, "rows": 2}, r"bands = \d+ there and 7 here, band_rows = \d+ there and 2 here"),
        ("near", {"method": "url"}, "method = near, which cannot be compared with url; use --method near"),
    ],
)
def test_old_outputs_that_cannot_be_compared_are_refused(outputs, tmp_path, against, settings, message):
    with pytest.raises(UserError, match=message):
        dedup(
            DedupConfig(
                input=(str(outputs / "in.jsonl"),),
                output=str(tmp_path / "out"),
                workers=1,
                against=(str(outputs / against),),
                **{"threshold": 1.0, **settings},
            )
        )


def test_exact_copies_are_found_with_the_signatures_of_near_duplicates(outputs, tmp_path):
    with pytest.raises(UserError, match=r"no document is left \(5 in: 5 exact\)"):
        dedup(
            DedupConfig(
                input=(str(outputs / "in.jsonl"),),
                output=str(tmp_path / "out"),
                workers=1,
                method="exact",
                against=(str(outputs / "near"),),
            )
        )


@pytest.mark.parametrize("name", [*signatures.ARRAYS])
@pytest.mark.parametrize(
    "value",
    [
        None,
        np.array(5),
        np.array([1.5, 2.5]),
        np.array(["a", "b"]),
        np.array([[1, 2], [3, 4]], np.int64),
        np.array([], np.uint32),
        np.array([2**31, 5], np.uint32),
        np.array([0, 2**62, 1], np.int64),
        np.array([0, -1, 1], np.int64),
    ],
    ids=["empty file", "0-d", "floats", "texts", "2-d", "none", "large", "beyond", "falling"],
)
def test_saved_arrays_of_a_stranger_are_checked(saved, tmp_path, name, value):
    """A wrong array gives one line; the same as the right one in type and shape may pass."""
    shutil.copytree(saved, tmp_path / "old")
    path = tmp_path / "old/signatures" / f"00000.{name}.npy"
    before = np.load(path)
    if value is None:
        path.write_bytes(b"")
    else:
        np.save(path, value)
        if before.dtype == value.dtype and before.shape == value.shape:
            pytest.skip("it is like the right one")
    with pytest.raises(UserError, match="make the signatures again") as error:
        signatures.read_old_keys((str(tmp_path / "old"),), "exact", {}, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["archive", "objects", "too long"])
def test_a_saved_file_that_is_no_array_of_numbers_is_refused(saved, tmp_path, kind):
    shutil.copytree(saved, tmp_path / "old")
    path = next((tmp_path / "old/signatures").glob("*.exact.npy"))
    values = np.load(path)
    if kind == "archive":
        with path.open("wb") as file:
            np.savez(file, values)
    elif kind == "objects":
        np.save(path, values.astype(object), allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"exact\.npy: .*make the signatures again"):
        signatures.read_old_keys((str(tmp_path / "old"),), "exact", {}, {})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    (folder / "in.jsonl").write_text(
        "".join(json.dumps({"text": f"words of text {n}"}) + "\n" for n in range(3))
    )
    config = DedupConfig(
        input=(str(folder / "in.jsonl"),), output=str(folder / "out"), workers=1, save_signatures=True
    )
    dedup(config)
    return folder / "out"


def test_signatures_of_other_rules_for_texts_are_refused(saved):
    with pytest.raises(UserError, match="compared texts by other rules"):
        signatures.read_old_keys((str(saved),), "exact", {}, {"text_rules": "words of letters alone"})
