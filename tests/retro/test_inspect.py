import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.neighbors import SampleNeighbors
from mt.retro.inspect import InspectRetrievalConfig, inspect
from mt.tests.retro.small_databases import LENGTH, SEQ, datasets, texts


def test_a_sample_is_shown_chunk_by_chunk_with_its_neighbours(folder):
    train, valid, _ = datasets(folder)
    shown = inspect(InspectRetrievalConfig(directory=str(folder / "near"), sample=7, num_neighbors=3))
    assert (
        "".join(c["text"] for c in shown["chunks"]) == bytes(t for t in train[7][:SEQ].tolist() if t).decode()
    )
    ids = np.load(folder / "near" / "train.npy")[7]
    assert [[n["chunk"] for n in c["neighbors"]] for c in shown["chunks"]] == ids.tolist()
    tokens, mask = SampleNeighbors(folder / "near", train).tokens(7, 3)
    assert (
        shown["chunks"][1]["neighbors"][2]["text"]
        == bytes(tokens[1, 2][mask[1, 2] & (tokens[1, 2] > 0)].tolist()).decode()
    )
    assert shown["text"].splitlines()[1].startswith(f"    chunk {ids[0, 0]}: ")
    first = inspect(InspectRetrievalConfig(directory=str(folder / "near"), sample=0, sample_split="valid"))[
        "chunks"
    ][0]["text"]
    assert first == bytes(t for t in valid[0][:LENGTH].tolist() if t).decode()
    assert inspect(InspectRetrievalConfig(directory=str(folder / "near")))["facts"]["train_samples"] >= 150


def test_a_database_shows_its_facts_and_a_chunk_with_its_neighbours(folder):
    shown = inspect(InspectRetrievalConfig(directory=str(folder / "db"), chunk=(5,)))
    row = np.load(folder / "db" / "chunks.npy")[5]
    assert shown["facts"]["chunks"] == len(np.load(folder / "db" / "chunks.npy"))
    assert shown["chunks"][0]["text"] == texts(40, 0, 8)[row["document"]][row["start"] : row["end"]]
    assert [n["chunk"] for n in shown["chunks"][0]["neighbors"]] == np.load(folder / "db" / "neighbors.npy")[
        5
    ].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"directory": "near", "chunk": (1,)}, "has the neighbours of samples; use --sample here"),
        ({"directory": "db", "sample": 1}, "is not the finished neighbours of samples"),
        ({"directory": "db", "chunk": (9999,)}, r"chunk 9999: .*db has the chunks 0 to"),
        ({"directory": "near", "sample": 9999}, r"sample 9999: .*near has the train samples 0 to"),
        (
            {"directory": "near", "sample": 1, "sample_split": "test"},
            "sample_split = test: .*near has train, valid",
        ),
        ({"directory": "nowhere"}, "is not a finished retrieval database"),
    ],
)
def test_numbers_and_directories_that_cannot_be_shown_are_refused(folder, settings, message):
    with pytest.raises(UserError, match=message):
        inspect(InspectRetrievalConfig(**(settings | {"directory": str(folder / settings["directory"])})))
