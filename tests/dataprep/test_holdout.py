"""Documents set aside: always the same ones, and the formats that evaluation reads."""

import json
import re

import pytest
import xxhash

from mt.core.config import UserError
from mt.dataprep import stage
from mt.dataprep.holdout import FUNCTION_WORDS, HoldoutConfig, holdout, passages_of, wikitext
from mt.documents.folders import find
from mt.documents.reader import Document

STORY = (
    "The old lighthouse keeper lived alone above the harbour and rarely spoke to anybody in the town. "
    "Every evening he climbed the narrow stairs with a lamp in his hand and a book under his arm. "
    "One winter a storm broke the great window and the lamp went out before the ships had come home. "
    "Without a word he carried wood to the shore and kept a fire burning until he saw the ships."
)


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows(count=400):
    return [
        {"id": f"doc/{i}", "title": f"Story {i}", "text": f"Story number {i}. {STORY}"} for i in range(count)
    ]


def test_every_document_is_either_kept_or_held_out(tmp_path):
    manifest = holdout(
        HoldoutConfig(
            input=(write(tmp_path / "in.jsonl", rows()),),
            output=str(tmp_path / "out"),
            fraction=0.1,
            workers=1,
        )
    )
    kept, aside = lines(tmp_path / "out/00000.jsonl"), lines(tmp_path / "out/heldout.jsonl")
    assert sorted(r["id"] for r in kept + aside) == sorted(r["id"] for r in rows())
    assert 20 < len(aside) == manifest["counts"]["removed"]["held_out"] < 60
    assert all(r in rows() for r in aside)
    assert [f.path.name for f in find([str(tmp_path / "out")])] == [
        "00000.jsonl"
    ]  # later stages read only this file


def test_the_choice_depends_only_on_id_and_seed(tmp_path):
    few = {r["id"] for r in rows(200)}
    chosen = {}
    for name, records, more in (
        ("all", rows(), {}),
        ("few", rows(200)[::-1], {}),
        ("workers", rows(), {"workers": 2, "shard_bytes": 1 << 16}),
        ("seed", rows(), {"seed": 5}),
    ):
        settings = {"workers": 1, **more}
        holdout(
            HoldoutConfig(
                input=(write(tmp_path / f"{name}.jsonl", records),),
                output=str(tmp_path / name),
                fraction=0.1,
                **settings,
            )
        )
        chosen[name] = {r["id"] for r in lines(tmp_path / name / "heldout.jsonl")}
    assert chosen["few"] == chosen["all"] & few
    assert chosen["workers"] == chosen["all"] != chosen["seed"]
    for name in ("heldout.jsonl", "wikitext.txt", "lambada.jsonl"):
        assert (tmp_path / "workers" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_wikitext_has_headings_and_one_paragraph_per_line():
    document = Document("7", "First line\nof a paragraph.\n\n\n  Second   one.\n", {"title": "The\nTitle"})
    assert wikitext(document) == " \n = The Title = \n \n First line of a paragraph. \n Second one. \n"
    assert wikitext(Document("7", "Text.")).startswith(" \n = 7 = \n")


def test_a_passage_ends_in_a_content_word_that_occurs_earlier_in_it():
    (passage,) = passages_of(STORY)
    assert passage == STORY[STORY.index("Every evening") : -1], (
        "as many sentences as make enough words of context"
    )
    assert passage.split(" ")[-1] == "ships"


@pytest.mark.parametrize(
    "ending",
    [
        "and nobody knew the reason.",  # occurs once
        "and the keeper had seen them before.",  # a function word
        "and read in the book_2.",  # not a word of letters
    ],
)
def test_sentences_with_other_endings_give_no_passage(ending):
    assert list(passages_of(STORY.replace("until he saw the ships.", ending))) == []


def test_the_context_does_not_cross_text_that_is_not_prose():
    assert list(passages_of(STORY.replace(" Without", "\n\n>>> f(x) == [1, 2, 3]\n\nWithout"))) == []


def test_passages_of_the_speeches_follow_lambadas_definition(tmp_path, speeches_file):
    holdout(
        HoldoutConfig(
            input=(str(speeches_file),), output=str(tmp_path / "out"), fraction=0.5, lambada=50, workers=1
        )
    )
    passages = [r["text"] for r in lines(tmp_path / "out/lambada.jsonl")]
    assert len(passages) == 50
    heldout_text = " ".join(" ".join(r["text"].split()) for r in lines(tmp_path / "out/heldout.jsonl"))
    for passage in passages:
        *context, target = passage.split()
        assert target.isalpha()
        assert target.lower() not in FUNCTION_WORDS
        assert target.lower() in re.findall("[a-z]+", " ".join(context).lower())
        assert passage.split(". ")[0] in heldout_text


def test_a_kill_during_the_removal_of_work_files_leaves_a_finished_output(tmp_path, monkeypatch):
    config = HoldoutConfig(
        input=(write(tmp_path / "in.jsonl", rows()),), output=str(tmp_path / "out"), workers=1
    )
    monkeypatch.setattr(
        stage, "discard_parts", lambda run: (run.output / "parts/heldout/00000.jsonl").unlink()
    )
    manifest = holdout(config)
    monkeypatch.undo()
    assert (tmp_path / "out/parts").exists()
    assert holdout(config) == manifest
    assert not (tmp_path / "out/parts").exists()


@pytest.mark.parametrize(
    ("records", "settings", "message"),
    [
        (
            [{"text": "short"}] * 3,
            {},
            r"none of 3 documents was set aside \(fraction = 0.02, min_chars = 300\)",
        ),
        (rows(3), {"fraction": 0.999999}, r"no document is left \(3 in: 3 held_out\)"),
        (rows(3), {"fraction": 1.5}, "fraction = 1.5 must lie between 0 and 1"),
    ],
)
def test_nothing_set_aside_or_nothing_left_is_refused(tmp_path, records, settings, message):
    with pytest.raises(UserError, match=message):
        holdout(
            HoldoutConfig(
                input=(write(tmp_path / "in.jsonl", records),),
                output=str(tmp_path / "out"),
                workers=1,
                **settings,
            )
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction": 0.0}, "fraction = 0.0 must lie between 0 and 1"),
        ({"fraction": 1.0}, "fraction = 1.0 must lie between 0 and 1"),
        ({"min_chars": -1}, "min_chars = -1 must not be negative"),
        ({"lambada": -1}, "lambada = -1 must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    HoldoutConfig(input=("x",), output="y", min_chars=0, lambada=0)
    with pytest.raises(UserError, match=message):
        HoldoutConfig(input=("x",), output="y", **settings)


def test_a_document_of_exactly_min_chars_can_be_set_aside(tmp_path):
    records = [{"id": str(i), "text": "x" * (99 + i % 2)} for i in range(100)]
    source = write(tmp_path / "in.jsonl", records)
    config = {"input": (source,), "output": str(tmp_path / "out"), "fraction": 0.9, "workers": 1}
    holdout(HoldoutConfig(**config, min_chars=100))
    assert {len(r["text"]) for r in lines(tmp_path / "out/heldout.jsonl")} == {100}


def test_at_most_the_requested_passages_are_chosen_by_their_hashes_in_order(tmp_path):
    source = write(tmp_path / "in.jsonl", rows(60))
    found = {}
    for name, lambada in (("all", 500), ("some", 7), ("none", 0)):
        config = {"input": (source,), "output": str(tmp_path / name), "fraction": 0.5, "workers": 1}
        manifest = holdout(HoldoutConfig(**config, lambada=lambada))
        found[name] = [r["text"] for r in lines(tmp_path / name / "lambada.jsonl")]
        assert manifest["lambada_passages"] == len(found[name])
    rank = lambda passage: xxhash.xxh3_64_intdigest(f"1234:{passage}".encode())
    least = sorted(range(len(found["all"])), key=lambda i: (rank(found["all"][i]), i))[:7]
    assert found["some"] == [found["all"][i] for i in sorted(least)]
    assert found["none"] == []


def test_where_short_documents_are_passed_over_the_manifest_says_so_and_names_the_remedy(tmp_path):
    short = [{"id": f"short/{i}", "text": "Too short."} for i in range(2000)]
    source = write(tmp_path / "in.jsonl", [*short, *rows(100)])
    found = {}
    for least in (300, 0):
        config = HoldoutConfig(
            input=(source,), output=str(tmp_path / str(least)), fraction=0.1, min_chars=least, workers=1
        )
        found[least] = holdout(config)
    chosen = found[300]["counts"]["removed"]["held_out"]
    passed_over = found[0]["counts"]["removed"]["held_out"] - chosen
    assert found[300]["advice"] == (
        f"set aside {chosen / 2100:.2%} of the documents, not 10.00%: {passed_over} more were drawn, but have"
        " fewer than min_chars = 300 characters; lower --min-chars, or raise --fraction"
    )
    assert "advice" not in found[0]
