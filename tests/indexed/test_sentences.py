"""Sentences, compared with those of NLTK's tokenizer with the same parameters."""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nltk.tokenize.punkt import PunktLanguageVars, PunktSentenceTokenizer, PunktTokenizer

from mt.core import config
from mt.indexed import sentences
from mt.indexed.build import TokenizeConfig, tokenize
from mt.indexed.format import IndexedDataset
from mt.indexed.sentences import SentenceSplitter, TrainPunktConfig, find_parameters, train_punkt

ATOMS = [
    *".?!.?!.?!  \n\t\"')]}”’«»,;:-—([@*_#",
    "...",
    "--",
    ". . .",
    "\n\n",
    "Mr",
    "Dr",
    "e.g",
    "U.S",
    "i.e",
    "J",
    "a",
    "5",
    "3.5",
    "No",
    "the",
    "The",
    "However",
    "it",
    "I",
    "Ph.D",
    "ü",
    "Éa",
    "don't",
    "x_y",
    "\x85",
    "\x1c",
    "\u2028",
    "\u3000",
    "ß",
    "Hello",
    "B",
    "Levine",
    "who",
    "D-Conn",
]


class KeepingNewlines(PunktLanguageVars):
    """Megatron-LM's regular expression for --keep-newlines."""

    _period_context_fmt = r"""
        \S*%(SentEndChars)s\s*
        (?=(?P<after_tok>%(NonWord)s|(?P<next_tok>\S+)))"""


@pytest.fixture(scope="module")
def pairs(punkt):
    """Pairs (our splitter, NLTK's): one that drops white space, one that keeps it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.data.path", [str(punkt.parents[2])])
        theirs = PunktTokenizer("english")
    keeping = PunktSentenceTokenizer(theirs._params, lang_vars=KeepingNewlines())
    return (SentenceSplitter(punkt), theirs.tokenize), (
        SentenceSplitter(punkt, keep_newlines=True),
        keeping.tokenize,
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from(ATOMS) | st.text(max_size=4), max_size=20).map("".join)
    | st.lists(st.sampled_from(ATOMS), max_size=20).map(" ".join)
)
def test_any_text_gives_the_sentences_of_nltk(pairs, text):
    for ours, theirs in pairs:
        assert ours(text) == theirs(text)


def test_real_texts_give_the_sentences_of_nltk(pairs, speeches):
    for ours, theirs in pairs:
        for text in speeches:
            assert ours(text) == theirs(text)


def test_reviews_and_tokenised_text_give_the_sentences_of_nltk(pairs, shared):
    reviews = [json.loads(line)["text"] for line in (shared / "data/corpus/reviews.jsonl").open()][:300]
    texts = [*reviews, (shared / "data/wikitext/valid.txt").read_text()[:200_000]]
    for ours, theirs in pairs:
        for text in texts:
            assert ours(text) == theirs(text)


def test_every_table_of_parameters_decides_as_in_nltk(pairs, punkt):
    """Each collocation, with abbreviations, initials and numbers before words that may start a sentence."""
    rows = {name: (punkt / name).read_text().splitlines() for name in sentences.FILES}
    firsts = [row.split("\t")[0] for row in rows["collocations.tab"]]
    seconds = [row.split("\t")[1] for row in rows["collocations.tab"]]
    befores = [*firsts, *rows["abbrev_types.txt"], "J", "5", "3.1", "No", "word", "..", "x-Mr", "x-y"]
    afters = [
        *seconds[:5],
        *rows["sent_starters.txt"][:10],
        "nobody",
        "He",
        "12",
        "(",
        "-",
        "...",
        "\x1c",
        "\n\x1c",
        "",
    ]
    texts = [f"It is {a}. {b} so." for a, b in zip(firsts, seconds)]
    texts += [
        f"It is {shape(a)}.{space}{shape(b)}"
        for a in befores
        for b in afters
        for shape in (str, str.title)
        for space in (" ", "\n", "")
    ]
    texts += ["a.\n\x1c", "word!\n \x1c", "word.\n\x1c\nmore"]
    for ours, theirs in pairs:
        for text in texts:
            text = text.replace("##number##", "42")
            assert ours(text) == theirs(text)


def test_a_collocation_of_plain_words_is_not_split_at_its_period(tmp_path):
    for name, rows in zip(sentences.FILES, ("", "foo\tbar\n", "", "")):
        (tmp_path / name).write_text(rows)
    assert SentenceSplitter(tmp_path)("It is foo. Bar so. Foo. Baz.") == [
        "It is foo. Bar so.",
        "Foo.",
        "Baz.",
    ]


def test_white_space_is_dropped_or_kept(punkt):
    text = "Hello world.\n\nDr. Smith came. (He left!)  \n"
    assert SentenceSplitter(punkt)(text) == ["Hello world.", "Dr. Smith came.", "(He left!)"]
    assert SentenceSplitter(punkt, keep_newlines=True)(text) == [
        "Hello world.\n\n",
        "Dr. Smith came. ",
        "(He left!)",
    ]


def test_long_texts_are_split_into_slabs_first(punkt, monkeypatch):
    monkeypatch.setattr(sentences, "SLAB_CHARACTERS", 10)
    assert SentenceSplitter(punkt)("One two. Three four. Five") == [
        "One two.",
        "T",
        "hree four.",
        " Five",
    ], "as there"


def test_long_words_take_linear_time_with_newlines_kept(punkt):
    splitter = SentenceSplitter(punkt, keep_newlines=True)
    assert splitter("x" * 300_000 + " end. Next.") == ["x" * 300_000 + " end. ", "Next."]


def test_a_document_is_stored_as_its_sentences_with_one_end_of_document_token(tmp_path, punkt):
    records = [
        {"text": "Mr. Fox ran. He slept!"},
        {"text": ""},
        {"text": ["Split already. Yes.", "", "b"]},
        {"text": " \n"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    settings_ = {
        "input": (str(tmp_path / "in.jsonl"),),
        "output_prefix": str(tmp_path / "p"),
        "tokenizer_type": "ByteLevelTokenizer",
        "workers": 1,
    }
    made = tokenize(
        TokenizeConfig(split_sentences=True, append_eod=True, punkt=str(punkt.parent), **settings_)
    )
    data = IndexedDataset(tmp_path / "p_text_sentence")
    assert [bytes(s.tolist()) for s in data] == [
        b"Mr. Fox ran.",
        b"He slept!\0",
        b"Split already. Yes.",
        b"b\0",
    ]
    assert data.document_indices.tolist() == [0, 2, 2, 4, 4]
    assert made["counts"]["sequences"] == 4


def test_missing_parameters_are_refused_with_the_commands_that_provide_them(tmp_path, punkt, monkeypatch):
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    with pytest.raises(
        config.UserError,
        match=r"no Punkt parameters for 'german' .*python -m nltk.downloader punkt_tab.*mt data train-punkt",
    ):
        find_parameters("german", None)
    shutil.copytree(punkt, tmp_path / "tokenizers/punkt_tab/english")
    assert find_parameters("english", None) == tmp_path / "tokenizers/punkt_tab/english"
    assert (
        find_parameters("english", str(punkt.parent))
        == find_parameters("english", str(punkt)).parent / "english"
    )
    (tmp_path / "tokenizers/punkt_tab/english/collocations.tab").write_text("one column\n")
    with pytest.raises(config.UserError, match="does not hold two columns"):
        SentenceSplitter(tmp_path / "tokenizers/punkt_tab/english")
    for wrong, rule in (
        ({"keep_newlines": True}, "keep_newlines has no effect"),
        ({"punkt": "x"}, "punkt = x is not read"),
    ):
        with pytest.raises(config.UserError, match=rule):
            TokenizeConfig(input=("x",), output_prefix="y", **wrong)


def test_other_parameters_give_another_run(tmp_path, punkt):
    shutil.copytree(punkt, tmp_path / "punkt")
    (tmp_path / "in.jsonl").write_text('{"text": "Mr. Fox ran."}\n')
    settings_ = TokenizeConfig(
        input=(str(tmp_path / "in.jsonl"),),
        output_prefix=str(tmp_path / "p"),
        tokenizer_type="ByteLevelTokenizer",
        workers=1,
        split_sentences=True,
        punkt=str(tmp_path / "punkt"),
    )
    assert tokenize(settings_)["counts"]["sequences"] == 1
    (tmp_path / "punkt/abbrev_types.txt").write_text("dr")
    with pytest.raises(config.UserError, match="holds another run"):
        tokenize(settings_)


def test_trained_parameters_equal_those_of_nltks_trainer_on_every_run(tmp_path):
    from nltk.tokenize.punkt import PunktTrainer

    generator = random.Random(0)
    texts = [
        " ".join(
            generator.choice(
                [
                    "Dr. Who came.",
                    "The dog of prof. Xu ran.",
                    "It was No. 5 at 3 p.m. today.",
                    "We met Mr. T. there!",
                    "Why?",
                ]
            )
            for _ in range(30)
        )
        for _ in range(20)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    trainer = PunktTrainer()
    for text in texts:
        trainer.train(text, finalize=False)
    trainer.finalize_training()
    learnt = trainer.get_params()
    made = train_punkt(TrainPunktConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "a")))
    assert made["counts"]["abbreviations"] == len(learnt.abbrev_types) > 0
    ours = SentenceSplitter(find_parameters("english", str(tmp_path / "a")))
    assert (ours.abbreviations, ours.starters, ours.collocations) == (
        learnt.abbrev_types,
        learnt.sent_starters,
        learnt.collocations,
    )
    assert ours.contexts == dict(learnt.ortho_context)
    assert ours(texts[0]) == PunktSentenceTokenizer(learnt).tokenize(texts[0])
    command = [
        sys.executable,
        "-m",
        "mt",
        "data",
        "train-punkt",
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "b"),
    ]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "7"})
    for name in sentences.FILES:
        assert (tmp_path / "a/english" / name).read_bytes() == (tmp_path / "b/english" / name).read_bytes()
    (tmp_path / "none.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(config.UserError, match="contains no text to train on"):
        train_punkt(TrainPunktConfig(input=(str(tmp_path / "none.jsonl"),), output=str(tmp_path / "c")))


def test_records_that_cannot_be_read_are_written_beside_the_parameters(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "Mr. Fox ran. He hid."}\n{"text": 3}\n')
    made = train_punkt(
        TrainPunktConfig(input=(str(tmp_path / "in.jsonl"),), output=str(tmp_path / "out"), on_error="skip")
    )
    assert made["counts"]["rejected"] == 1
    reject = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert reject["place"] == "line 2"
    assert reject["raw"] == '{"text": 3}'
    assert "rejects.jsonl" in [output["name"] for output in made["outputs"]]


def test_a_file_of_parameters_that_is_a_device_is_refused(tmp_path, punkt):
    folder = shutil.copytree(punkt, tmp_path / "punkt")
    (folder / sentences.FILES[0]).unlink()
    (folder / sentences.FILES[0]).symlink_to("/dev/null")
    with pytest.raises(config.UserError, match="is not a regular file"):
        SentenceSplitter(folder)
