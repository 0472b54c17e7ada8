"""Sections about documents: histograms, removed ones with their marks, pairs, n-grams; and their bounds."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.commands.report.documents import AROUND, LONG, MOST_OF_A_REASON, document_sections, excerpt
from mt.commands.report.stages import find_run
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.tests.commands.report.small_runs import SECRET, documents, write_documents


@pytest.fixture(scope="module")
def sections(run_folder):
    return document_sections(find_run(run_folder))


def shown(pieces, kind):
    return [text for text, of in pieces if of == kind]


def test_removed_documents_have_what_offended_marked(sections):
    assert sections.notes == []
    clean = next(stage for stage in sections.removed if stage["stage"] == "clean")
    groups = {group["reason"]: group for group in clean["groups"]}
    assert {reason: group["count"] for reason, group in groups.items()} == {
        "too_short": 2,
        "javascript_notice": 1,
    }
    (document,) = groups["javascript_notice"]["documents"]
    assert shown(document["pieces"], "mark") == ["JavaScript"]
    assert {d["id"] for d in groups["too_short"]["documents"]} == {"short/0", "short/1"}
    assert groups["too_short"]["documents"][0]["measured"][0].startswith("characters: ")


def test_a_pair_shows_which_words_differ(sections):
    (stage,) = sections.pairs
    near = next(pair for pair in stage["pairs"] if "near/0" in (pair["id"], pair["survivor"]))
    words = {*shown(near["pieces"], "removed"), *shown(near["pieces"], "added")}
    assert words == {"brown", "green"}


def test_n_grams_of_evaluations_show_what_happened_to_the_document(sections):
    (stage,) = sections.ngrams
    assert stage["tasks"]["evaluation.txt"]["documents_matched"] == 1
    (ngram,) = stage["ngrams"]
    assert (ngram["id"], ngram["ngram"]) == ("leak/0", SECRET)
    assert shown(ngram["pieces"], "mark") == [SECRET]
    assert ngram["fate"] in ("removed", "trimmed", "cut into 2")


def test_histograms_count_lengths_languages_and_sources(sections, run_folder):
    kept = [json.loads(line) for line in (run_folder / "clean" / "00000.jsonl").read_text().splitlines()]
    length, language, source = sections.histograms
    assert length["stages"][0] == ("clean", len(kept))
    shares = {bar["name"]: bar["shares"][0] for bar in length["bars"]}
    assert sum(shares.values()) == pytest.approx(1)
    between = [row for row in kept if 256 <= len(row["text"]) < 512]
    assert shares["256–511"] == pytest.approx(len(between) / len(kept))
    assert language["bars"][0]["name"] == "en"
    sources = {bar["name"]: bar["shares"][0] for bar in source["bars"]}
    assert sources["a"] == pytest.approx(sum(row["id"].startswith("a/") for row in kept) / len(kept))


def test_the_source_is_a_field_or_a_host_where_there_is_one(tmp_path):
    urls = [
        {"id": str(n), "text": f"The text number {n} is here.", "url": f"https://h{n % 2}.org/{n}"}
        for n in range(9)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in urls))
    clean(
        CleanConfig(
            input=(str(tmp_path / "in.jsonl"),),
            output=str(tmp_path / "run"),
            rules=("whitespace",),
            workers=1,
        )
    )
    source = document_sections(find_run(tmp_path / "run")).histograms[2]
    assert (source["about"], [bar["name"] for bar in source["bars"]]) == (
        "host of the field url",
        ["h0.org", "h1.org"],
    )


def test_what_cannot_be_read_any_more_is_a_note_and_the_rest_is_shown(run_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    (copy / "dedup" / "removed" / "00000.jsonl").unlink()
    (copy / "clean" / "removed" / "00000.jsonl").write_text('{"id": 3}\n')
    found = document_sections(find_run(copy))
    assert len(found.notes) == 2
    assert any("does not exist" in note for note in found.notes)
    assert [stage["stage"] for stage in found.removed] == ["decontaminate"] * bool(found.removed)
    assert found.ngrams
    assert found.histograms


def test_a_stage_with_long_texts_takes_a_bounded_page(tmp_path):
    """Few documents of a reason, and of a long mark only its ends."""
    long = [{"id": f"{n}", "text": f"{'word ' * 40_000}end{n}"} for n in range(40)]
    path = write_documents(tmp_path, [*long, *documents()])
    how = {"rules": ("length max_chars=5000",), "workers": 1}
    clean(CleanConfig(input=(str(path),), output=str(tmp_path / "run"), **how))
    (stage,) = document_sections(find_run(tmp_path / "run")).removed
    (group,) = stage["groups"]
    assert (group["count"], len(group["documents"])) == (40, MOST_OF_A_REASON)
    assert len(json.dumps(stage)) < 8000
    assert all(shown(d["pieces"], "mark")[-1].endswith(f" end{d['id']}") for d in group["documents"])


# Long texts of few draws: hypothesis takes a tenth of a second to draw 3,000 characters one by one.
TEXTS = st.lists(st.tuples(st.text(max_size=9), st.integers(1, 99)), max_size=8).map(
    lambda runs: "".join(piece * times for piece, times in runs)[:3000]
)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 500)), max_size=6))
def test_an_excerpt_is_short_and_has_no_other_text_than_the_document(text, starts):
    places, at = [], 0
    for start, size in sorted(starts):
        start = max(start, at)
        if start + size > len(text):
            break
        places.append([start, start + size])
        at = start + size
    pieces = excerpt(text, places)
    assert all(piece in text for piece, kind in pieces if kind != "gap")
    whole = "".join(piece for piece, kind in pieces if kind != "gap")
    assert len(whole) <= LONG * 4
    if len(text) <= AROUND:
        assert whole == text
    if places:
        assert pieces[0][1] == "mark" or text.startswith(pieces[0][0]) or pieces[0][1] == "gap"
