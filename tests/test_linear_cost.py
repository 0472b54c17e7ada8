"""The time of everything that reads a stranger's text is linear in its length, also where one unit repeats.

Each function in `PATHS` gets every text of `repeated_units.py`.
"""

import ast
import base64
import contextlib
import functools
import io
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.core.unicode import normalize
from mt.dataprep import decontaminate, evaluation_texts, holdout
from mt.dataprep.dedup import lines, minhash, shingles, token_windows
from mt.dataprep.dedup.exact_keys import exact_key, url_key
from mt.dataprep.extract import docstrings, urls, wikipedia
from mt.dataprep.filters import language, train_classifier
from mt.dataprep.filters.rules import EDITS, RULES, compile_rules
from mt.dataprep.split import count_tokens, split_text
from mt.documents import json_values, tables
from mt.documents.html import main_text
from mt.documents.html_encoding import declared_encoding, decode_page
from mt.documents.html_limits import quadratic_markup
from mt.documents.reader import Document
from mt.documents.records import loads
from mt.eval.generation.sampling import TextStream
from mt.eval.tasks import detokenize, examples, open_qa, retrieval, wikitext
from mt.indexed.sentences import SentenceSplitter
from mt.tests.repeated_units import FRAMES, builders, excess
from mt.tests.tokenizer.texts import TEXTS
from mt.tokenizer.tokenizer import ByteLevelTokenizer, TokenizerConfig, load
from mt.tokenizer.train import cut_long_words

QUICK_FRAMES = FRAMES[1:]  # a run inside a word or a line: most algorithms that are not linear show it there
RULE_ITEMS = [
    *RULES,
    *EDITS,
    "normalize_unicode form=NFKC",
    "normalize_unicode form=NFD",
    "c4 split=sentences terminal_punctuation=false min_words_per_line=0 curly_bracket=false",
    "c4 terminal_punctuation=false min_words_per_line=0 curly_bracket=false",
    "gopher_quality words=apart min_words=0 max_mean_word=0 min_mean_word=0",
    "gopher_repetition words=apart max_dup_lines=0 max_dup_line_chars=0 max_dup_paragraphs=0"
    " max_dup_paragraph_chars=0",
    "redact private_ip=true",
    "symbol_lines",
]
SCRIPT_ITEMS = [
    "gopher_quality min_words=0 max_mean_word=0 min_mean_word=0",
    "gopher_repetition max_dup_lines=0",
    "fineweb",
    "c4",
    "c4 split=sentences terminal_punctuation=false min_words_per_line=0 curly_bracket=false",
]

DOMAINS = frozenset(("example", "example.org"))


def docstrings_of(text: str) -> list[tuple[str, str]]:
    return list(docstrings.docstrings(ast.Module([ast.Expr(ast.Constant(text))], [])))


def csv_rows(text: str) -> list[object]:
    file = io.BufferedReader(io.BytesIO(text.encode()))
    with contextlib.suppress(UserError):
        return list(tables.rows(file, "a.csv", "csv", "", 10**9, "utf-8"))
    return []


def json_values_of(text: str) -> list[object]:
    return list(json_values.values(io.BytesIO(text.encode()), 10**9))


BYTES = ByteLevelTokenizer()
# Functions of a text that need no files.
PLAIN: dict[str, Callable[[str], object]] = {
    **{item: compile_rules([item]) for item in RULE_ITEMS},
    **{
        f"{item}, {code}": compile_rules([item], lang=(code,))
        for item in SCRIPT_ITEMS
        for code in ("zh", "de")
    },
    "shingles of words": lambda text: shingles.shingle(*shingles.batch_words([text]), 5),
    "shingles of characters": lambda text: shingles.shingle(*shingles.batch_characters([text]), 5),
    "shingles in compiled loops": lambda text: minhash.text_shingles([text], 5, "word", True),
    "exact key": exact_key,
    "URL key": url_key,
    "lines": lines.SEPARATOR["line"].split,
    "paragraphs": lines.SEPARATOR["paragraph"].split,
    "cut of evaluation text": lambda text: decontaminate.cut(text, [(0, 1), (50, 60)], 200, 200),
    "LAMBADA passages": lambda text: list(holdout.passages_of(text)),
    "WikiText of a document": lambda text: holdout.wikitext(Document("a", text)),
    "record of an evaluation": lambda text: evaluation_texts.record_texts(
        {"article": text, "question": text, "options": [text]}, "text"
    ),
    "wikitext": wikipedia.plain_text,
    "header of a dump": lambda text: wikipedia._parse_site(b"<mediawiki>" + text.encode(), "path"),
    "HTML": main_text,
    "UTF-8 of a page": lambda text: decode_page(text.encode("utf-8", "replace")),
    "pairs of bytes of a page": lambda text: decode_page(text.encode("utf-8", "replace") + b"\xff", "gbk"),
    "bytes of a page": lambda text: decode_page(text.encode("latin-1", "replace") + b"\xff", "windows-1252"),
    "HTML in a body": lambda text: main_text("<html><body>" + text),
    "HTML by blocks": lambda text: main_text("<html><body><p>x" + text, "block_classifier"),
    "HTML by resiliparse": lambda text: main_text("<html><body>" + text, "resiliparse"),
    "HTML by trafilatura alone, fast": lambda text: main_text("<html><body>" + text, "trafilatura_fast"),
    "HTML by trafilatura, precise": lambda text: main_text("<html><body>" + text, "trafilatura_precision"),
    "HTML in an attribute": lambda text: main_text(f'<html><body><p class="{text}">' + text),
    "quadratic markup of a page": quadratic_markup,
    "declared encoding": lambda text: declared_encoding(text.encode()),
    "meta of an encoding": lambda text: declared_encoding(b"<meta " + text.encode()),
    "split by characters": lambda text: split_text(text, 100),
    "split into single characters": lambda text: split_text(text, 1),
    "split by tokens": lambda text: split_text(text, 50, functools.partial(count_tokens, BYTES)),
    "fastText model": lambda text: language._model().predict(text),
    "words for a fastText model": lambda text: train_classifier._words(text.encode()),
    "tokens of substrings": lambda text: token_windows.tokens([text]),
    "CSV": csv_rows,
    "CSV with names": lambda text: csv_rows("text,id\n" + text),
    "JSON array": lambda text: json_values_of("[" + text),
    "JSON values": json_values_of,
    "number in a line of JSON": lambda text: loads(
        json.dumps([text, 10**20], ensure_ascii=False).encode("utf-8", "replace")
    ),
    "URL": lambda text: urls.drop_reason(text, DOMAINS, frozenset(("jpg",))),
    "URL with a host": lambda text: urls.drop_reason(f"http://{text}.com/", DOMAINS, frozenset()),
    "docstring": docstrings_of,
    "WikiText detokenizer": detokenize.wikitext,
    "Penn Treebank detokenizer": detokenize.ptb,
    "articles of WikiText": lambda text: list(wikitext.articles(text)),
    "score of an answer": lambda text: open_qa.score(text, (text,)),
    "cleaned example": examples.clean,
    "words of an answer": retrieval.words,
    "answer in a block": lambda text: retrieval.contains([*text], [*text[: len(text) // 2], "x"]),
    "cut of long words": cut_long_words,
    "NFC": functools.partial(normalize, "NFC"),
}
# Functions that take more than a microsecond for a character get shorter texts, and fewer in the quick test.
HEAVY = (
    "punctuation",
    "wikitext",
    "fix_text",
    "HTML",
    "HTML in a body",
    "HTML by trafilatura alone, fast",
    "HTML by trafilatura, precise",
    "HTML in an attribute",
    "HTML by blocks",
    "split into single characters",
    "split by characters",
    "split by tokens",
    "shingles of words",
    "score of an answer",
    "words of an answer",
)
QUICK_TOKENIZERS = ("gpt2", "sentencepiece bpe", "sentences", "sentences with newlines")
TOKENIZERS = (
    "gpt2",
    "gpt2 by the reference",
    "gpt2 decoded",
    "gpt2 decoded one by one",
    "bert",
    "bert cased by the reference",
    "bert decoded",
    "tiktoken v1",
    "tiktoken v2",
    "sentencepiece bpe",
    "sentencepiece bpe with all spaces",
    "sentencepiece unigram",
    "bytes decoded one by one",
)
SPLITTERS = ("sentences", "sentences with newlines")


def decoded_one_by_one(tokenizer, text: str) -> str:
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer, ids[:1], ("stop here",))
    for token in ids[1:]:
        stream.push(token)
    stream.flush()
    return stream.text


@pytest.fixture(scope="module")
def with_files(tmp_path_factory, gpt2_files, bert_vocabulary, punkt) -> dict[str, Callable[[str], object]]:
    """The functions TOKENIZERS and SPLITTERS."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("tokenizers")
    gpt2 = load(TokenizerConfig(**gpt2_files))
    bert, cased = (
        load(TokenizerConfig(tokenizer_type=f"BertWordPiece{case}", vocab_file=bert_vocabulary))
        for case in ("LowerCase", "Case")
    )
    ranks = [bytes([b]) for b in range(256)] + [
        b" th",
        b" the",
        b"in",
        b"aa",
        b"aaaa",
        b"  ",
        b"    ",
        b"\n\n",
    ]
    entries = [
        {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": ""}
        for i, token in enumerate(ranks)
    ]
    (folder / "ranks.json").write_text(json.dumps(entries))
    tiktoken = {
        f"tiktoken {pattern}": load(
            TokenizerConfig(
                tokenizer_type="TikTokenizer",
                tokenizer_model=str(folder / "ranks.json"),
                tiktoken_num_special_tokens=10,
                tiktoken_pattern=pattern,
            )
        )._reference_encoder.encode
        for pattern in ("v1", "v2")
    }
    for kind in ("bpe", "unigram"):
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(TEXTS),
            model_prefix=str(folder / kind),
            vocab_size=400,
            model_type=kind,
            hard_vocab_limit=False,
            byte_fallback=kind == "bpe",
            minloglevel=2,
        )
    pieces = {
        f"sentencepiece {kind}{' with all spaces' * all_spaces}": load(
            TokenizerConfig(
                tokenizer_type="SentencePieceTokenizer",
                tokenizer_model=str(folder / f"{kind}.model"),
                tokenizer_sentencepiece_ignore_extra_whitespaces=not all_spaces,
            )
        ).encode
        for kind, all_spaces in (("bpe", False), ("bpe", True), ("unigram", False))
    }
    return {
        "gpt2": gpt2.encode,
        "gpt2 by the reference": gpt2._reference_encoder.encode,
        "gpt2 decoded": lambda text: gpt2.decode(gpt2.encode(text)),
        "gpt2 decoded one by one": functools.partial(decoded_one_by_one, gpt2),
        "bert": bert.encode,
        "bert cased by the reference": cased._reference_encoder.encode,
        "bert decoded": lambda text: bert.decode(bert.encode(text)),
        **tiktoken,
        **pieces,
        "bytes decoded one by one": functools.partial(decoded_one_by_one, ByteLevelTokenizer()),
        "sentences": SentenceSplitter(punkt),
        "sentences with newlines": SentenceSplitter(punkt, keep_newlines=True),
    }


def excesses(
    function: Callable[[str], object], chars: int, negligible: float, frames, part: slice = slice(None)
) -> dict[str, str]:
    """{text: figures} of the texts on which the time of a function grows too fast; part: of all texts."""
    function("Warm up, compile loops, import libraries.\n\nAnd once \u201cmore\u201d: e\u0301, caf\xc3\xa9.")
    texts = list(builders(frames).items())[part]
    found = {name: excess(function, make, chars, negligible) for name, make in texts}
    return {name: figures for name, figures in found.items() if figures is not None}


@pytest.mark.parametrize("name", PLAIN)
def test_a_function_takes_linear_time_on_repeated_units(name):
    """On a fifth of the texts, the next function on the next fifth; the slow tests take all."""
    part = slice(list(PLAIN).index(name) % 5, None, 5)
    if name in HEAVY:
        assert excesses(PLAIN[name], 3_000, 0.012, FRAMES[2:], part) == {}
    else:
        assert excesses(PLAIN[name], 8_000, 0.02, QUICK_FRAMES, part) == {}


@pytest.mark.parametrize("name", QUICK_TOKENIZERS)
def test_a_tokenizer_takes_linear_time_on_repeated_units(name, with_files):
    assert excesses(with_files[name], 2_000, 0.008, QUICK_FRAMES) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_a_function_takes_linear_time_on_longer_texts(name):
    # At 32,000 characters the heavy ones took a minute of a CPU and more, each.
    chars, negligible = (8_000, 0.02) if name in HEAVY else (32_000, 0.04)
    assert excesses(PLAIN[name], chars, negligible, FRAMES) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TOKENIZERS, *SPLITTERS])
def test_a_tokenizer_takes_linear_time_on_longer_texts(name, with_files):
    chars = 2_000 if name.endswith("one by one") else 16_000
    assert excesses(with_files[name], chars, 0.04, QUICK_FRAMES) == {}


@settings(max_examples=25)
@given(
    st.text(" \t\n()[]{}<>'\"`,.;:!?-+=|_/&@#1aA\xe9\u0301\u0327\xc2\u201d", min_size=1, max_size=4),
    st.text(" \na1.)", max_size=2),
)
def test_any_unit_of_a_few_characters_takes_linear_time(unit, after):
    def text(chars: int) -> str:
        return "Aa " + unit * (chars // len(unit)) + after

    figures = {name: excess(function, text, 3_000, 0.008) for name, function in PLAIN.items()}
    assert {name: found for name, found in figures.items() if found is not None} == {}
