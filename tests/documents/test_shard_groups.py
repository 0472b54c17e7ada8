"""Small shards that share a group: which ones do, and what a group reads."""

import json

import pyarrow
import pyarrow.parquet
from hypothesis import given
from hypothesis import strategies as st

from mt.documents import rejects, shard_groups, sharding
from mt.documents.shard_groups import FILE_BYTES, SHARE, group
from mt.documents.sharding import Shard

SIZES = st.lists(st.integers(0, 40_000) | st.just(0), max_size=60)


def shards(sizes, kind="lines"):
    return [
        Shard(f"{i}.jsonl", 0, size, size, "text", "fail", 1 << 20, kind, f"{i}.jsonl")
        for i, size in enumerate(sizes)
    ]


@given(SIZES, st.integers(1 << 16, 1 << 19))
def test_groups_hold_all_shards_in_order_and_none_is_needlessly_small_or_large(sizes, shard_bytes):
    every = shards(sizes)
    groups = group(every, shard_bytes)
    assert [s for g in groups for s in g.shards] == every
    assert all(g.bytes == sum(s.bytes for s in g.shards) for g in groups)
    weights = [sum(s.bytes + FILE_BYTES for s in g.shards) for g in groups]
    limit = shard_bytes // SHARE
    assert all(len(g.shards) == 1 or weight <= limit for g, weight in zip(groups, weights))
    following = [g.shards[0].bytes + FILE_BYTES for g in groups[1:]]
    assert all(weight + more > limit for weight, more in zip(weights, following))


def test_shards_of_datasets_of_unknown_size_are_alone():
    every = shards([0, 0, 0], "hub")
    assert [g.shards for g in group(every, 1 << 26)] == [(s,) for s in every]


def test_a_group_reads_the_documents_of_its_files_in_order_and_names_the_bad_record(tmp_path):
    for name in "abc":
        records = [{"id": f"{name}{i}", "text": f"{name} {i}"} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (tmp_path / "b.txt").write_text("plain")
    (whole,) = group(sharding.plan([str(tmp_path)]), 1 << 26)
    assert [d.id for d in whole.read()] == ["a0", "a1", "a2", "b0", "b1", "b2", "b.txt", "c0", "c1", "c2"]
    assert whole.name == f"{tmp_path}/a.jsonl and 3 more files"
    (tmp_path / "b.jsonl").write_text("[]\n")
    (bad,) = group(sharding.plan([str(tmp_path)], on_error="skip"), 1 << 26)
    unread = rejects.Rejects()
    assert len(list(bad.read(unread.append))) == 7
    assert [(r.file, r.place) for r in unread] == [(f"{tmp_path}/b.jsonl", "line 1")]


def test_a_stage_without_shared_shards_keeps_its_key():
    assert shard_groups.facts(group(shards([5_000_000] * 3), 1 << 26)) == {}
    assert shard_groups.facts(group(shards([50] * 3), 1 << 26)) == {"small_files": shard_groups.GROUP_RULES}


def test_a_group_has_the_columns_that_have_one_type_in_all_of_its_tables(tmp_path):
    texts = pyarrow.array(["t"])
    for name, more in {
        "a": {"n": pyarrow.array([1], pyarrow.int8()), "x": texts},
        "b": {"n": pyarrow.array([1], pyarrow.int8()), "x": pyarrow.array([1]), "y": pyarrow.array([1.5])},
    }.items():
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, **more}), tmp_path / f"{name}.parquet")
    (tables,) = group(sharding.plan([str(tmp_path)]), 1 << 26)
    assert {name: str(field.type) for name, field in tables.fields().items()} == {
        "text": "string",
        "n": "int8",
        "y": "double",
    }
    (tmp_path / "c.jsonl").write_text('{"text": "t", "n": 5}\n')
    (mixed,) = group(sharding.plan([str(tmp_path)]), 1 << 26)
    assert mixed.fields() == {}
