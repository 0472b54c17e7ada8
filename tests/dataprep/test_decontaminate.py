"""Decontamination, compared with a search by loops and cuts worked out by hand; errors."""

import json
import random
import re

import pytest

from mt.core.config import UserError
from mt.dataprep.decontaminate import DecontaminateConfig, cut, decontaminate


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def lines(folder):
    return [
        json.loads(line)
        for p in sorted(folder.glob("*.jsonl"))
        for line in p.read_text(encoding="utf-8").splitlines()
    ]


def run(tmp_path, records, against, name="out", **settings):
    source = write(tmp_path / "in.jsonl", records)
    files = []
    for file, content in against.items():
        path = tmp_path / file
        path.write_text(
            content if isinstance(content, str) else "".join(json.dumps({"text": t}) + "\n" for t in content),
            encoding="utf-8",
        )
        files.append(str(path))
    manifest = decontaminate(
        DecontaminateConfig(
            **{
                "input": (source,),
                "output": str(tmp_path / name),
                "evaluation": tuple(files),
                "workers": 1,
                **settings,
            }
        )
    )
    return manifest, lines(tmp_path / name), lines(tmp_path / name / "removed")


def words(prefix, count):
    return " ".join(f"{prefix}{i}" for i in range(count))


def folded(text):
    return [w.lower() for w in re.findall(r"\w+", text)]


def contains_ngram(document, texts, longest=13, shortest=8):
    """Whether a document contains an n-gram of the texts, by loops over strings."""
    own = folded(document)
    for text in texts:
        theirs = folded(text)
        n = min(len(theirs), longest)
        if n >= shortest:
            grams = {tuple(theirs[i : i + n]) for i in range(len(theirs) - n + 1)}
            if any(tuple(own[i : i + n]) in grams for i in range(len(own) - n + 1)):
                return True
    return False


def test_the_removed_documents_are_those_that_a_loop_finds(tmp_path):
    rng = random.Random(0)
    tests = [
        " ".join(rng.choices([f"w{i}" for i in range(500)], k=rng.choice([5, 8, 10, 12, 13, 14, 40])))
        for _ in range(60)
    ]
    records = []
    for i in range(300):
        body = rng.choices([f"w{i}" for i in range(500)], k=rng.randint(1, 80))
        if rng.random() < 0.6:
            source = rng.choice(tests).split()
            start, length = rng.choice([0, 0, rng.randrange(len(source))]), rng.choice([7, 8, 12, 13, 40])
            place = rng.randrange(len(body))
            body[place:place] = source[start : start + length]
        records.append(
            {
                "id": str(i),
                "text": (
                    rng.choice([" ", "  ", ", ", "-\n"]).join(rng.choice([w, w.upper()]) for w in body)
                    + rng.choice(["", "ß", " İ"])
                ),
            }
        )
    _, kept, removed = run(tmp_path, records, {"task.jsonl": tests}, mode="document", key_threshold=0)
    expected = {r["id"] for r in records if contains_ngram(r["text"], tests)}
    assert {r["id"] for r in removed} == expected
    assert [r for r in records if r["id"] not in expected] == kept
    assert 50 < len(expected) < 250


def test_a_document_is_cut_around_the_match_at_ends_of_sentences(tmp_path):
    secret = words("secret", 13)
    sentence = "This is a sentence of forty characters.. "  # 41 with its space
    text = sentence * 20 + f"Before {secret.title()} after. " + sentence * 20
    manifest, kept, removed = run(
        tmp_path,
        [{"id": "a", "text": text, "n": 1}, {"id": "b", "text": "clean text"}],
        {"lambada.jsonl": [secret]},
    )
    start, end = text.index("Secret0"), text.index("Secret12") + len("Secret12")
    left = text[: max(m.end() for m in re.finditer(r"\.", text) if m.start() <= start - 200)]
    right = text[min(m.end() for m in re.finditer(r"\.", text) if m.start() >= end + 200) :]
    assert [(r["id"], r["text"], r.get("n")) for r in kept] == [
        ("a#1", left.strip(), 1),
        ("a#2", right.strip(), 1),
        ("b", "clean text", None),
    ]
    assert removed == []
    assert manifest["cut"] == {"split": 1}
    assert manifest["counts"]["rows_kept"] == 2


def test_positions_are_those_of_the_text_and_not_of_its_lower_case(tmp_path):
    secret = words("secret", 13)
    text = (
        "İ" * 50
        + ". "
        + "An honest sentence stands here. " * 20
        + secret
        + " end. "
        + "Another honest sentence. " * 30
    )
    assert len(text.lower()) > len(text)
    _, kept, _ = run(tmp_path, [{"id": "a", "text": text}], {"t.jsonl": [secret]})
    assert all("secret" not in r["text"] and r["text"].endswith(".") for r in kept)
    assert [r["id"] for r in kept] == ["a#1", "a#2"]


def test_short_documents_and_short_keys_are_searched_everywhere(tmp_path):
    key = words("key", 8)
    records = [
        {"id": "short", "text": key},
        {"id": "tail", "text": words("x", 40) + " " + key},
        {"id": "clean", "text": words("y", 30)},
    ]
    _, kept, removed = run(tmp_path, records, {"t.jsonl": [key]}, mode="document")
    assert [r["id"] for r in kept] == ["clean"]
    assert [(r["id"], r["reason"], r["against"], r["example"]) for r in removed] == [
        ("short", "contaminated", ["t.jsonl"], key),
        ("tail", "contaminated", ["t.jsonl"], key),
    ]


def test_an_ngram_across_two_documents_does_not_match(tmp_path):
    secret = words("secret", 13).split()
    records = [
        {"id": str(i), "text": " ".join(part)} for i, part in enumerate([secret[:7], secret[7:], secret])
    ]
    _, kept, _ = run(tmp_path, records, {"t.jsonl": [words("secret", 13)]})
    assert kept == records[:2]


def test_common_ngrams_are_ignored(tmp_path):
    secret = words("secret", 13)
    records = [{"id": str(i), "text": f"{secret} in number {i}"} for i in range(5)]
    manifest, kept, _ = run(tmp_path, records, {"t.jsonl": [secret]}, key_threshold=5)
    assert len(kept) == 5
    assert manifest["evaluation"]["t.jsonl"]["ngrams_too_common"] == 1
    with pytest.raises(UserError, match=r"no document is left \(5 in: 5 contaminated\)"):
        run(tmp_path, records, {"t.jsonl": [secret]}, "more", key_threshold=6)


def test_a_document_that_splits_into_too_many_pieces_is_removed(tmp_path):
    secret = words("secret", 13)
    text = ("A sentence that is honest. " * 30 + secret + ". ") * 4
    settings = {"max_pieces": 3, "key_threshold": 0}
    _, _, removed = run(
        tmp_path, [{"id": "a", "text": text}, {"id": "b", "text": "clean"}], {"t.jsonl": [secret]}, **settings
    )
    assert [(r["id"], r["reason"], r["pieces"]) for r in removed] == [("a", "too_many_pieces", 4)]


def test_the_report_says_which_file_matched_what(tmp_path):
    one, two = words("one", 20), words("two", 13)
    records = [
        {"id": "1", "text": one},
        {"id": "2", "text": f"{words('one', 13)} {two}"},
        {"id": "3", "text": "clean"},
    ]
    against = {
        "one.jsonl": [one, "too short"],
        "both.txt": f" = {two} = \n\n {one} \n",
        "wiki.test.tokens": f"{words('three', 13)}\n",
    }
    manifest, _, _ = run(tmp_path, records, against, mode="document")
    report = manifest["evaluation"]
    assert report["one.jsonl"] == {
        "texts": 2,
        "texts_too_short": 1,
        "rows_malformed": 0,
        "ngrams": 8,
        "ngrams_matched": 8,
        "ngrams_too_common": 0,
        "documents_matched": 2,
    }
    assert (report["both.txt"]["ngrams_matched"], report["both.txt"]["documents_matched"]) == (9, 2)
    assert (report["wiki.test.tokens"]["ngrams"], report["wiki.test.tokens"]["documents_matched"]) == (1, 0)


def test_workers_and_shards_do_not_change_the_result_and_evaluation_files_enter_the_key(tmp_path):
    secret = words("secret", 13)
    records = [
        {
            "id": str(i),
            "text": ("Some honest sentence here. " * 20 + (secret if i % 50 == 0 else "") + ". ") * 2,
        }
        for i in range(400)
    ]
    first, one, gone = run(tmp_path, records, {"t.jsonl": [secret]}, "one")
    _, two, also_gone = run(tmp_path, records, {"t.jsonl": [secret]}, "two", workers=2, shard_bytes=1 << 16)
    assert (one, gone) == (two, also_gone)
    with pytest.raises(UserError, match="holds another run"):
        run(tmp_path, records, {"t.jsonl": [secret + " more"]}, "one")
    assert first["inputs"][-1]["path"].endswith("t.jsonl")


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], ["One. Two. Three. Four. Five."]),
        ([(5, 8)], ["Four. Five."]),
        ([(24, 27)], ["One. Two. Three."]),
        ([(5, 8), (6, 14)], ["Four. Five."]),  # the second match is within the first cut
        ([(5, 8), (24, 27)], []),
        ([(0, 28)], []),
    ],
)
def test_cut_removes_up_to_sentence_ends_on_both_sides(spans, expected):
    assert cut("One. Two. Three. Four. Five.", spans, 3, 6) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"text": "one two three"}\n',
            r"t\.jsonl: none of its 1 texts has 8 words: there is nothing to look for; check the file and"
            r" --evaluation-key, or lower --min-ngram",
        ),
        (
            '{"text": "a"}\n{"txt": "b"}\n',
            r"t\.jsonl, line 2: has no key 'text' \(it has 'txt'\); correct the evaluation file, or name"
            r" the key of its texts with --evaluation-key",
        ),
        ('{"text": null}\n', r"t\.jsonl, line 1: 'text' is null, not a text; correct the evaluation file"),
        ("", r"t\.jsonl, line 1: the file is empty; correct the evaluation file"),
    ],
)
def test_an_evaluation_file_without_a_usable_ngram_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, [{"text": "x"}], {"t.jsonl": content})


def test_a_missing_evaluation_file_and_settings_out_of_range_are_refused(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        decontaminate(
            DecontaminateConfig(
                input=(source,), output=str(tmp_path / "out"), evaluation=(str(tmp_path / "none.jsonl"),)
            )
        )
    with pytest.raises(UserError, match="min_ngram = 14 must lie between 1 and max_ngram = 13"):
        DecontaminateConfig(input=(source,), output=str(tmp_path / "out"), evaluation=("x",), min_ngram=14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluation": ()}, "evaluation is empty: name the evaluation files"),
        ({"min_ngram": 0}, "min_ngram = 0 must lie between 1 and max_ngram = 13"),
        ({"remove_chars_each_side": -1}, "remove_chars_each_side = -1 must not be negative"),
        ({"min_piece_chars": -1}, "min_piece_chars = -1 must not be negative"),
        ({"key_threshold": -1}, "key_threshold = -1 must not be negative"),
        ({"max_pieces": 0}, "max_pieces = 0 must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    least = {"min_ngram": 1, "max_ngram": 1, "remove_chars_each_side": 0, "min_piece_chars": 0}
    DecontaminateConfig(input=("x",), output="y", evaluation=("z",), key_threshold=0, max_pieces=1, **least)
    with pytest.raises(UserError, match=message):
        DecontaminateConfig(**{"input": ("x",), "output": "y", "evaluation": ("z",), **settings})
