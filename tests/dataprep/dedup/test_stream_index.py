"""The verdicts of a stream, compared with the clusters of all pairs of the documents so far."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import Failure, UserError
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.key_index import PAIR_WINDOW
from mt.dataprep.dedup.stream import open_index, sign
from mt.dataprep.dedup.stream_index import NUMBER
from mt.documents.reader import Document

WORDS = ["river", "field", "hill", "under", "rests", "old", "dog"]
CONFIG = DedupConfig(stream=True, ngram=1, bands=48, rows=1, threshold=0.5)


def words(text):
    return set(re.findall(r"\w+", text))


def jaccard(a, b):
    return len(a & b) / len(a | b) if a | b else 0.0


def expected(texts, threshold):
    """(what, number of the survivor, similarity) of the last of some texts, from all pairs."""
    sets, forms = list(map(words, texts)), [" ".join(t.split()) for t in texts]
    near = lambda i, j: sets[i] and jaccard(sets[i], sets[j]) >= threshold
    cluster, grown = {len(texts) - 1}, True
    while grown:
        more = {j for i in cluster for j in range(len(texts)) if forms[i] == forms[j] or near(i, j)}
        grown, cluster = not more <= cluster, cluster | more
    first = min(cluster)
    if first == len(texts) - 1:
        return ("kept", None, None)
    if forms[first] == forms[-1]:
        return ("exact", first, 1.0)
    return ("near", first, jaccard(sets[first], sets[-1]))


def documents(texts):
    return [Document(str(number), text) for number, text in enumerate(texts)]


def decided(index, found, config=CONFIG):
    """The verdicts on documents, with survivors as numbers; the index is told that they are written."""
    signed = sign(found, config)
    verdicts = index.decide(signed)
    index.written(signed)
    return [
        (v["what"], int(v["survivor"]), pytest.approx(v["similarity"]))
        if v["survivor"]
        else (v["what"], None, None)
        for v in verdicts
    ]


TEXTS = st.lists(
    st.lists(st.sampled_from([*WORDS, "\n", "?"]), max_size=6).map(" ".join), max_size=PAIR_WINDOW
)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.integers(1, 8))
def test_every_verdict_is_that_of_the_last_document_of_all_pairs_so_far(texts, size):
    index, verdicts = open_index(CONFIG), []
    for start in range(0, len(texts), size):
        verdicts += decided(index, documents(texts)[start : start + size])
    assert verdicts == [expected(texts[: i + 1], 0.5) for i in range(len(texts))]


def test_redis_gives_the_verdicts_of_memory_over_several_processes(redis_server):
    texts = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 3]) for i in range(60)]
    config = DedupConfig(stream=True, ngram=1, bands=48, rows=1, threshold=0.5, index=redis_server.url)
    in_memory = decided(open_index(CONFIG), documents(texts))
    verdicts = []
    for start in range(0, 60, 7):
        index = open_index(config)  # another connection, which knows nothing
        verdicts += decided(index, documents(texts)[start : start + 7])
    assert verdicts == in_memory
    assert {what for what, *_ in verdicts} == {"kept", "near", "exact"}
    assert index.documents == 60


def test_datasketch_finds_in_redis_what_was_indexed(redis_server):
    from datasketch import LeanMinHash, MinHashLSH

    config = DedupConfig(stream=True, ngram=1, index=redis_server.url)
    [document] = sign([Document("a", "the old dog rests")], config)
    open_index(config).decide([document])
    bands, rows = config.banding()
    storage = {"type": "redis", "basename": b"mt_dedup", "redis": {"port": redis_server.port}}
    lsh = MinHashLSH(num_perm=bands * rows, params=(bands, rows), storage_config=storage, prepickle=False)
    minhash = LeanMinHash(seed=1, hashvalues=document.minhash, scheme="affine32")
    assert lsh.query(minhash) == [NUMBER.pack(0)]


def test_a_document_that_is_sent_again_is_no_copy_and_gets_its_verdict_until_it_is_written():
    index = open_index(CONFIG)
    first = sign(documents(["the old dog", "the old dog", "a hill"]), CONFIG)
    before = index.decide(first)
    assert [v["what"] for v in before] == ["kept", "exact", "kept"]
    assert index.decide(first) == before  # not written yet
    index.written(first[:1])
    assert [v["what"] for v in index.decide(first)] == ["again", "exact", "kept"]
    index.written(first)
    assert {v["what"] for v in index.decide(first)} == {"again"}
    changed = sign([Document("0", "the old dog barks"), Document("0", "under")], CONFIG)
    assert [v["what"] for v in index.decide(changed)] == ["near", "kept"]  # the id alone is no identity


def test_verdicts_that_were_not_written_outlive_the_process(redis_server):
    config = DedupConfig(stream=True, ngram=1, index=redis_server.url)
    signed = sign(documents(["the old dog", "the old dog", "a hill"]), config)
    before = open_index(config).decide(signed)
    assert open_index(config).decide(signed[:2]) == before[:2]
    index = open_index(config)
    index.written(signed[:2])
    assert [v["what"] for v in open_index(config).decide(signed)] == ["again", "again", "kept"]


def test_what_a_broken_off_list_left_in_the_buckets_is_never_a_survivor(redis_server, monkeypatch):
    config = DedupConfig(stream=True, ngram=1, index=redis_server.url, verify=False)
    index = open_index(config)
    with monkeypatch.context() as patch:
        patch.setattr(index.tables, "commit", lambda *changes: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.decide(sign(documents(["the old dog"]), config))
    assert redis_server.client.hlen("mt_dedup_keys") == 1
    signed = sign([Document("new", "the old dog")], config)
    assert [v["what"] for v in index.decide(signed)] == ["kept"]


def test_a_template_is_compared_with_the_first_and_the_last_of_its_bucket_and_no_bucket_grows():
    config = DedupConfig(stream=True, ngram=1, bands=2, rows=1, threshold=1.0)
    index = open_index(config)
    for i in range(60):
        index.decide(sign([Document(str(i), " ".join(f"template{n}" for n in range(40)) + f" {i}")], config))
    sizes = [len(table.get(h)) for table in index.lsh.hashtables for h in table]
    assert max(sizes) == PAIR_WINDOW + 2  # what is too much is removed when the next one comes


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("head", "documents", "many"),
        ("head", "numbers", "-1"),
        ("head", "numbers", "0"),  # the number of a node would be given again
        ("head", "unwritten", "[1]"),
        ("head", "unwritten", '{"x": {"what": "near", "survivor": "a", "similarity": 1.0}}'),
        ("parent", NUMBER.pack(0), b"\x80\x04N."),
        ("parent", NUMBER.pack(0), NUMBER.pack(7)),
        ("grams", NUMBER.pack(0), b"1234567"),
        ("grams", NUMBER.pack(0), b"\xff" * 16),
        ("name", NUMBER.pack(0), b"\xff"),
    ],
)
def test_values_that_mt_does_not_write_are_refused(redis_server, table, key, value):
    config = DedupConfig(stream=True, ngram=1, index=redis_server.url)
    open_index(config).decide(sign(documents(["the old dog"]), config))
    redis_server.client.hset(f"mt_dedup:{table}", key, value)
    with pytest.raises(UserError, match="holds what mt does not write"):
        open_index(config).decide(sign([Document("b", "the old dog the")], config))


def test_an_index_of_other_settings_and_a_second_command_are_refused(redis_server):
    config = DedupConfig(stream=True, ngram=1, index=redis_server.url)
    old = open_index(config)
    other = DedupConfig(stream=True, ngram=1, index=redis_server.url, threshold=0.8, bands=20, rows=5)
    with pytest.raises(UserError, match=r"was made with threshold = 0\.7 there and 0\.8 here; give the same"):
        open_index(other)
    open_index(config)
    with pytest.raises(Failure, match="is not this command's any more"):
        old.decide(sign(documents(["the old dog"]), config))
