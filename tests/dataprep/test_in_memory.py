"""`mt.clean` and `mt.dedup` give every document the verdict of the commands."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mt
from mt.dataprep.in_memory import RemovedDocument, clean, dedup

WORDS = ["the", "cat", "of", "a", "house", "that", "at", "and", "with", "water", "be", "to", "have"]


def run(command, documents, folder, **how):
    """(kept documents, {id: line of removed/}) of a command."""
    mt.write_documents(documents, folder / "in.jsonl")
    mt.run(command, input=folder / "in.jsonl", output=folder / "out", workers=1, overwrite=True, **how)
    lines = [line for p in sorted((folder / "out/removed").iterdir()) for line in p.read_text().splitlines()]
    kept = list(mt.read_documents(folder / "out/*.jsonl"))
    return kept, {entry.pop("id"): entry for entry in map(json.loads, lines)}


def assert_same(selection, kept, removed, facts=True):
    """facts: whether the command writes them too."""
    assert list(selection) == kept
    found = {r.document.id: {"reason": r.reason} | (r.facts if facts else {}) for r in selection.removed}
    assert found == removed
    assert sum(selection.counts.values()) == len(removed)


def texts(seed, count):
    """Texts of which some are copies of others, or copies with a few other words."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        if found and chance.random() < 0.5:
            words = chance.choice(found).split()
            for _ in range(chance.randrange(3)):
                words[chance.randrange(len(words))] = chance.choice(WORDS)
        else:
            words = chance.choices(WORDS, k=chance.randrange(1, 80))
        found.append(" ".join(words) + chance.choice(["", ".", "  \n", "!!!"]))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@given(seed=st.integers(0, 10**6), preset=st.sampled_from([None, "prose", "gopher"]))
@settings(max_examples=4, deadline=None)
def test_clean_gives_the_verdicts_and_texts_of_the_command(folder, seed, preset):
    documents = [mt.Document(f"d{n}", text, {"n": n}) for n, text in enumerate(texts(seed, 20))]
    if not (selection := clean(documents, preset)):
        with pytest.raises(mt.UserError, match="no document is left"):
            run("data clean", documents, folder, **({"preset": preset} if preset else {}))
        assert len(selection.removed) == 20
        return
    assert_same(selection, *run("data clean", documents, folder, preset=preset), facts=False)


def test_what_decided_is_told_with_its_number_and_limit():
    (short,) = clean(["tiny", "a text " * 20], "prose").removed
    assert short.facts == {
        "rule": "length", "measure": "characters", "number": 4, "at_least": 100, "parameter": "min_chars",
    }  # fmt: skip


@given(
    seed=st.integers(0, 10**6),
    how=st.sampled_from(
        [{}, {"threshold": 0.5, "survivor": "first"}, {"method": "exact"}, {"ngram": 3, "ngram_unit": "char"}]
    ),
)
@settings(max_examples=6, deadline=None)
def test_dedup_gives_the_verdicts_of_the_command(folder, seed, how):
    documents = [mt.Document(f"d{n}", text, {"n": n}) for n, text in enumerate(texts(seed, 25))]
    assert_same(dedup(documents, **how, workers=1), *run("data dedup", documents, folder, **how))


def test_documents_may_have_the_same_id_and_urls_are_compared():
    documents = [
        {"id": "x", "text": t, "url": u}
        for t, u in [("one", "http://a/b"), ("two", "http://a/b/"), ("3", "http://c")]
    ]
    found = dedup(documents, method="url", workers=1)
    assert [d.text for d in found] == ["one", "3"] or [d.text for d in found] == ["two", "3"]
    assert found[0].meta["url"].startswith("http://a/b")
    assert found.counts == {"url": 1}


def test_a_selection_is_a_sequence_that_tells_its_counts():
    mine = {"text": "too  short", "id": "a"}
    found = clean([mine, "x" * 50], rules=["whitespace", "length min_chars=20"])
    assert (len(found), found[0].text, found[-1:], found.counts) == (
        1,
        "x" * 50,
        [found[0]],
        {"too_short": 1},
    )
    assert repr(found) == "<1 documents kept, 1 removed (too_short 1)>"
    facts = found.removed[0].facts
    assert found.removed == [RemovedDocument(mt.Document("a", "too  short"), "too_short", facts)]
    assert mine == {"text": "too  short", "id": "a"}
    assert list(dedup([])) == list(clean([])) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clean(["a"], "proze"), "preset 'proze' is not known; .*did you mean prose"),
        (lambda: clean(["a"], rules=["no_such_rule"]), "no_such_rule"),
        (lambda: clean(["a"], lang="xx"), "xx"),
        (lambda: clean(["a"], rules=[]), "rules is empty"),
        (lambda: dedup(["a"], threshold=2.0), "threshold = 2.0 must be above 0"),
        (lambda: dedup(["a"], method="nearly"), r"method = 'nearly': must be one of near, exact"),
        (lambda: dedup([], ngram=0), "ngram = 0 must be at least 1"),
        (lambda: dedup("a"), "put it into"),
    ],
)
def test_mistakes_have_the_messages_of_the_commands(call, message):
    with pytest.raises(mt.UserError, match=message):
        call()
