import json

import numpy as np
import pytest

from mt import cli
from mt.commands.summary import format_summary
from mt.core.config import UserError
from mt.retro.build import build_db
from mt.retro.query import QueryConfig, query
from mt.tests.retro.small_databases import LENGTH, database_settings, texts


def test_a_query_finds_its_own_text_first_and_a_chunk_never_its_own_document(built):
    table = np.load(built / "db" / "chunks.npy")
    chunk = len(table) // 2
    row = table[chunk]
    text = texts(60)[row["document"]][row["start"] : row["end"]]
    by_text, by_chunk = query(
        QueryConfig(db=str(built / "db"), text=(text,), chunk=(chunk,), num_neighbors=4)
    )["queries"]
    assert by_text["neighbors"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert by_text["neighbors"][0]["text"] == by_chunk["text"] == text
    assert [n["chunk"] for n in by_chunk["neighbors"]] == np.load(built / "db" / "neighbors.npy")[
        chunk
    ].tolist()
    assert row["document"] not in {n["document"] for n in by_chunk["neighbors"]}


def test_the_first_chunk_of_a_database_is_a_neighbour_like_any_other(built):
    """Its id is 0; only -1 is a missing neighbour."""
    first = texts(60)[0][:LENGTH]
    (found,) = query(QueryConfig(db=str(built / "db"), text=(first,), num_neighbors=3))["queries"]
    assert found["neighbors"][0]["chunk"] == 0
    assert len(found["neighbors"]) == 3
    nearest = found["neighbors"][0]
    assert (nearest["document"], nearest["start"], nearest["end"], nearest["text"]) == (0, 0, LENGTH, first)


def test_missing_neighbours_are_left_out(write_texts, tmp_path):
    write_texts("data", ["one chunk", "another"])
    build_db(database_settings(tmp_path))
    by_text, by_chunk = query(
        QueryConfig(db=str(tmp_path / "db"), text=("one chunk",), chunk=(1,), num_neighbors=3)
    )["queries"]
    assert [n["chunk"] for n in by_text["neighbors"]] == [0, 1]
    assert ([n["chunk"] for n in by_chunk["neighbors"]], by_chunk["chunk"]) == ([0], 1)


def test_the_last_chunk_is_found_and_numbers_beyond_it_are_refused(built):
    with pytest.raises(UserError, match="num_neighbors = 0 must be at least 1"):
        QueryConfig(db="db", text=("x",), num_neighbors=0)
    last = len(np.load(built / "db" / "chunks.npy")) - 1
    (found,) = query(QueryConfig(db=str(built / "db"), chunk=(last,), num_neighbors=1))["queries"]
    assert len(found["neighbors"]) == 1
    for wrong in (last + 1, -1):
        with pytest.raises(UserError, match=f"chunk {wrong}: .*db has the chunks 0 to {last:,}"):
            query(QueryConfig(db=str(built / "db"), chunk=(wrong,)))


def test_a_search_visits_the_requested_number_of_cells(built, tmp_path):
    build_db(database_settings(built, output=tmp_path / "cells", index="IVF4,Flat", nprobe=4))
    count = lambda **how: len(
        query(QueryConfig(db=str(tmp_path / "cells"), chunk=(17,), num_neighbors=10_000, **how))["queries"][
            0
        ]["neighbors"]
    )
    chunks = len(np.load(tmp_path / "cells" / "chunks.npy"))
    assert count(nprobe=1) < count(nprobe=2) < count() < chunks
    with pytest.raises(UserError, match="nprobe = 0 must be at least 1"):
        count(nprobe=0)


def test_a_query_prints_a_table_and_returns_its_data(built):
    summary = cli.call(
        ("retro", "query"), ["a river falls", "--db", str(built / "db"), "--num-neighbors", "2"]
    )
    lines = format_summary(summary).splitlines()
    assert lines[0] == "a river falls"
    assert lines[1].split() == ["distance", "chunk", "document", "text"]
    shown = json.loads(json.dumps(summary))["queries"][0]["neighbors"]
    assert [n["chunk"] for n in shown] == [int(line.split()[1]) for line in lines[2:]]
    assert len(shown) == 2


def test_a_query_of_token_ids_is_the_query_of_their_text(built):
    spaced, commas = " ".join(map(str, b"a river falls")), ", ".join(map(str, b"a river falls"))
    settings = QueryConfig(db=str(built / "db"), text=("a river falls",), tokens=(spaced, commas))
    by_text, by_spaced, by_commas = query(settings)["queries"]
    assert by_text == by_spaced == by_commas
    (zero,) = query(QueryConfig(db=str(built / "db"), tokens=("0",)))["queries"]
    assert zero["text"] == "", "the end-of-document token is a token, and no text"
    for wrong, message in [
        ("12 x", "must be token ids"),
        ("9999", "has the token 9999, but the tokenizer has only 512"),
        ("-1", "must not be negative"),
    ]:
        with pytest.raises(UserError, match=message):
            query(QueryConfig(db=str(built / "db"), tokens=(wrong,)))


def test_a_query_without_a_text_or_a_database_is_refused(built, tmp_path):
    db = str(built / "db")
    with pytest.raises(UserError, match="there is nothing to search for; give --text, --tokens or --chunk"):
        QueryConfig(db=db)
    with pytest.raises(UserError, match=r"chunk 9999: .*db has the chunks 0 to"):
        query(QueryConfig(db=db, chunk=(9999,)))
    with pytest.raises(
        UserError, match="is not a finished retrieval database; make one with `mt retro build-db"
    ):
        query(QueryConfig(db=str(tmp_path), text=("x",)))
