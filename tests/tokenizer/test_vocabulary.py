"""Vocabulary files of every kind, compared with transformers, tiktoken and `tokenizers`."""

import base64
import codecs
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core import config
from mt.tests.tokenizer.texts import ANY_TEXT, TEXTS
from mt.tokenizer import vocabulary
from mt.tokenizer.tokenizer import PROBE, TokenizerConfig, load, load_directory
from mt.tokenizer.vocabulary import TIKTOKEN_SPECIALS, add_specials, hide_specials, tiktoken_tree

SMALL_TREE = {"model": {"type": "BPE", "vocab": {"h": 0}, "merges": []}}


def test_gpt2_gives_the_ids_of_transformers(gpt2_files, gpt2, speeches):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(vocab=gpt2_files["vocab_file"], merges=gpt2_files["merge_file"])
    for text in [*TEXTS, PROBE, *speeches[:20]]:
        assert gpt2.encode(text) == theirs(text)["input_ids"]
    assert (gpt2.vocab_size, gpt2.eod) == (50257, 50256)


def test_a_special_piece_of_a_unigram_vocabulary_in_a_text_is_plain_text(tmp_path):
    from tokenizers import models, pre_tokenizers

    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "▁abc</s>")]
    tree = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tree.pre_tokenizer = pre_tokenizers.Metaspace()
    tree.add_special_tokens(["</s>"])
    tree.save(str(tmp_path / "tokenizer.json"))
    assert 1 in tree.encode("a</s>b").ids, "the library reads the special piece"
    ours = load_directory(tmp_path)
    assert ours.eod == 1
    assert 1 not in ours.encode("a</s>b")
    assert ours.encode("abc") == tree.encode("abc").ids


def test_added_tokens_that_are_not_special_keep_their_ids(tmp_path, bpe):
    tree = tokenizers.Tokenizer.from_str(bpe._json)
    tree.add_special_tokens(["<|first|>"])
    tree.add_tokens(["<tab>"])
    tree.add_special_tokens(["<|last|>"])
    tree.save(str(tmp_path / "tokenizer.json"))
    ours = load(TokenizerConfig(tokenizer_model=str(tmp_path / "tokenizer.json")))
    assert ours.encode("a<tab>b") == tree.encode("a<tab>b").ids
    assert tree.token_to_id("<tab>") in ours.encode("a<tab>b")
    assert tree.token_to_id("<|last|>") not in ours.encode("<|last|>")
    assert ours.vocab_size == tree.get_vocab_size()


def test_truncation_and_padding_of_a_tokenizer_file_are_ignored(tmp_path, bpe):
    tree = tokenizers.Tokenizer.from_str(bpe._json)
    tree.enable_truncation(4)
    tree.enable_padding(length=16)
    tree.save(str(tmp_path / "tokenizer.json"))
    assert load_directory(tmp_path).encode("the quick brown fox jumps") == bpe.encode(
        "the quick brown fox jumps"
    )


@pytest.mark.parametrize("lower", [True, False])
def test_bert_gives_the_pieces_of_transformers_without_special_tokens(bert_vocabulary, lower):
    from transformers import BertTokenizer

    kind = "BertWordPieceLowerCase" if lower else "BertWordPieceCase"
    ours = load(TokenizerConfig(tokenizer_type=kind, vocab_file=bert_vocabulary))
    theirs = BertTokenizer(vocab=bert_vocabulary, do_lower_case=lower)
    for text in ["Hello World! Unaffable naïve 中文字", *TEXTS]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.eod == theirs.sep_token_id
    assert not {101, 102, 103} & set(ours.encode("a [SEP] b [MASK]"))


def test_extra_ids_come_after_the_vocabulary(gpt2_files, gpt2):
    more = load(TokenizerConfig(**gpt2_files, vocab_extra_ids=3))
    assert more.vocab_size == gpt2.vocab_size + 3
    assert more.decode([50257, 50259]) == "<extra_id_0><extra_id_2>"
    assert more.encode("x<extra_id_0>") == gpt2.encode("x<extra_id_0>")


def test_merges_of_another_vocabulary_are_named(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na a\nab b\n")
    with pytest.raises(
        config.UserError,
        match=r"merges.txt, line 3: the merge .*makes 'aa', which .*vocab.json does not have",
    ):
        load(
            TokenizerConfig(vocab_file=str(tmp_path / "vocab.json"), merge_file=str(tmp_path / "merges.txt"))
        )
    tree = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b", "b a"]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(config.UserError, match=r"tokenizer.json: model.merges: the merge 'b a' makes 'ba'"):
        load(TokenizerConfig(tokenizer_model=str(tmp_path / "tokenizer.json")))


def test_files_that_are_not_tokenizers_are_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(config.UserError, match="cannot be built"):
        load(TokenizerConfig(tokenizer_model=str(path)))
    path.write_text('{"a": 1')
    with pytest.raises(config.UserError, match="line 1: not valid JSON"):
        load(TokenizerConfig(tokenizer_model=str(path)))
    path.write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(config.UserError, match="byte 7 is not UTF-8"):
        load(TokenizerConfig(tokenizer_model=str(path)))
    (tmp_path / "vocab.txt").write_text("hello\nworld\n")
    with pytest.raises(config.UserError, match=r"vocab.txt: has no \[PAD\] \[UNK\]"):
        load(TokenizerConfig(tokenizer_type="BertWordPieceCase", vocab_file=str(tmp_path / "vocab.txt")))
    with pytest.raises(config.UserError, match="reads numbers only"):
        load(TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=9)).encode("1 x")
    with pytest.raises(config.UserError, match=r"id 9 is outside \[0, 9\)"):
        load(TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=9)).encode("1 9")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT)
def test_tiktoken_ids_are_those_of_tiktoken(tiktokens, text):
    ours, theirs = tiktokens
    wanted = theirs.tokenizer.encode_ordinary(text)
    assert ours.encode(text) == wanted
    assert ours.decode(wanted) == text


def test_tiktokens_special_tokens_come_first(tiktokens):
    ours, theirs = tiktokens
    assert (ours.vocab_size, ours.bos, ours.eod) == (15000, theirs.bos_id, theirs.eos_id)
    assert ours.decode([0, 1, 2, 6, 7, 99]) == "<unk><s></s><sep><SPECIAL_7><SPECIAL_99>"
    for text in [*TEXTS, PROBE, "a</s>b <SPECIAL_7>", "x qzjqzxj"]:
        assert ours.encode(text) == theirs.tokenizer.encode_ordinary(text)


def test_named_special_tokens_are_added_and_are_plain_text_in_a_text(tmp_path, gpt2_files, gpt2, ranks):
    names = {"tokenizer_special_tokens": ("<think>", "<|endoftext|>")}
    ours = load(TokenizerConfig(**gpt2_files, **names))
    assert (ours.vocab_size, ours.decode([gpt2.vocab_size]), ours.eod) == (
        gpt2.vocab_size + 1,
        "<think>",
        gpt2.eod,
    )
    assert ours.encode("a <think> b") == gpt2.encode("a <think> b")
    assert gpt2.vocab_size in load(TokenizerConfig(**gpt2_files, **names), allow_special=True).encode(
        "a <think> b"
    )
    ours.save(tmp_path)
    assert load_directory(tmp_path).encode("a <think> b") == ours.encode("a <think> b")

    from megatron.core.tokenizers.text.libraries.tiktoken_tokenizer import TikTokenTokenizer

    several = ("<a>", *reversed(TIKTOKEN_SPECIALS), "<b>")
    settings_ = {"tokenizer_vocab_size": 15000, "tiktoken_num_special_tokens": 100}
    ours = load(
        TokenizerConfig(
            tokenizer_type="TikTokenizer",
            tokenizer_model=str(ranks),
            tokenizer_special_tokens=several,
            **settings_,
        )
    )
    theirs = TikTokenTokenizer(
        str(ranks), vocab_size=15000, num_special_tokens=100, special_tokens=list(several)
    )
    assert (ours.vocab_size, ours.bos, ours.eod) == (15000, theirs.bos_id, theirs.eos_id)
    assert ours.decode([0, 8, 9, 99]) == "<a><b><SPECIAL_9><SPECIAL_99>"
    assert ours.encode(TEXTS[0]) == theirs.tokenizer.encode_ordinary(TEXTS[0])


def test_bos_is_known_if_the_files_define_it(tmp_path, bert_vocabulary, gpt2, bpe):
    bert = load(TokenizerConfig(tokenizer_type="BertWordPieceCase", vocab_file=bert_vocabulary))
    assert (gpt2.bos, bert.bos, bpe.bos) == (50256, 101, None)
    bert.save(tmp_path)
    assert load_directory(tmp_path).bos == 101


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": 1}, "is not a JSON list"),
        ([{"rank": 0, "token_bytes": "AA=="}], "lacks some of the 256 bytes"),
        ([{"rank": 0, "token_bytes": "AQ=="}], "entry 0 is not token 0 in base64"),
        ([{"rank": 1, "token_bytes": "AA=="}], "entry 0 is not token 0 in base64"),
        ([{"rank": 0, "token_bytes": "!"}], "entry 0 is not token 0 in base64"),
        ([7], "entry 0 is not token 0 in base64"),
    ],
)
def test_files_of_ranks_that_are_not_tiktokens_are_named(tmp_path, entries, message):
    (tmp_path / "r.json").write_text(json.dumps(entries))
    with pytest.raises(config.UserError, match=message):
        load(TokenizerConfig(tokenizer_type="TikTokenizer", tokenizer_model=str(tmp_path / "r.json")))


def test_the_characters_of_bytes_are_those_of_the_library():
    from tokenizers import pre_tokenizers

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    shown = vocabulary._byte_characters()
    assert len(set(shown)) == 256
    assert set(shown) == set(pre_tokenizers.ByteLevel.alphabet())
    for code in [*range(128), 0x80, 0xBF, 0x3FF, 0x7FF, 0x800, 0xFFFD, 0x10FFFF]:
        ((text, _),) = cut(chr(code))
        assert text == "".join(shown[byte] for byte in chr(code).encode())


def test_token_ids_are_those_of_the_library(gpt2, bpe, bert_vocabulary):
    bert = load(TokenizerConfig(tokenizer_type="BertWordPieceCase", vocab_file=bert_vocabulary))
    for tokenizer in (gpt2, bpe, bert):
        tree = json.loads(tokenizer._json)
        assert vocabulary.token_ids(tree) == tokenizers.Tokenizer.from_str(tokenizer._json).get_vocab()


def test_hidden_special_tokens_keep_their_ids_and_other_tokens_their_names(bpe):
    tree = json.loads(bpe._json)
    vocabulary.add_specials(tree, ["<a>", "<b>"])
    tree["added_tokens"].append({**tree["added_tokens"][-1], "id": 402, "content": "<tab>", "special": False})
    before, after = vocabulary.token_ids(tree), vocabulary.token_ids(vocabulary.hide_specials(tree))
    assert sorted(before.values()) == sorted(after.values())
    assert {token for token in before if token not in after} == {"<|endoftext|>", "<a>", "<b>"}
    assert all("\ufdd0" in token for token in after if token not in before)
    assert before["<tab>"] == after["<tab>"] == 402


def test_a_token_of_a_million_characters_takes_no_quadratic_time(tmp_path):
    ranks = [bytes([b]) for b in range(256)] + [b"ab", b"abc", b"c" * 1_000_000]
    (tmp_path / "ranks.json").write_text(
        json.dumps([{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate(ranks)])
    )
    tree, _ = tiktoken_tree(str(tmp_path / "ranks.json"), "v2", 10, None)
    assert tree["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    add_specials(tree, ["s" * 1_000_000])
    assert len(hide_specials(tree)["added_tokens"]) == 11


@pytest.mark.parametrize("name", ["normalizer", "decoder"])
@pytest.mark.parametrize(
    ("pattern", "content", "times", "fits"),
    [
        ({"String": "h"}, "hh", 40, False),
        ({"Regex": "h"}, "hh", 40, False),
        ({"Regex": "(?=h)"}, "h", 40, False),
        ({"String": "h"}, "h" * 5000, 1, False),
        ({"String": " "}, "\u2581", 40, True),
        ({"Regex": "[\u201c\u201d]"}, '"', 40, True),
        ({"Regex": " {2,}"}, " ", 2, True),
        ({"Regex": "\\s*$"}, "", 40, True),
    ],
)
def test_replacements_that_multiply_a_text_are_refused(tmp_path, name, pattern, content, times, fits):
    step = {"type": "Replace", "pattern": pattern, "content": content}
    tree = SMALL_TREE | {name: {"type": "Sequence", f"{name}s": [step] * times}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    if fits:
        vocabulary.read_tokenizer_json(tmp_path / "tokenizer.json")
    else:
        with pytest.raises(config.UserError, match=f"{name} makes a text up to [0-9,]+ times"):
            vocabulary.read_tokenizer_json(tmp_path / "tokenizer.json")


def test_a_long_text_before_every_text_is_refused(tmp_path):
    tree = SMALL_TREE | {"normalizer": {"type": "Prepend", "prepend": "h" * 5000}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(config.UserError, match="normalizer makes a text up to 5,001 times as long"):
        vocabulary.read_tokenizer_json(tmp_path / "tokenizer.json")


def test_the_merges_are_the_same_however_the_splits_are_tried(tmp_path, monkeypatch):
    ranks = [bytes([b]) for b in range(256)] + [b"ab", b"abab", b"ababab", b"ba", b"babab", b"abababab"]
    (tmp_path / "ranks.json").write_text(
        json.dumps([{"rank": i, "token_bytes": base64.b64encode(t).decode()} for i, t in enumerate(ranks)])
    )
    arguments = (str(tmp_path / "ranks.json"), "v2", 10, None)
    wanted = tiktoken_tree(*arguments)[0]["model"]["merges"]
    monkeypatch.setattr(vocabulary, "LONG_TOKEN", 1)
    assert tiktoken_tree(*arguments)[0]["model"]["merges"] == wanted


LINE = st.text("ab \t\x0b\x0c\x1c\x1f\x85\xa0\u2028\u2029\u3000\r#é", max_size=4)


@given(st.lists(LINE, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_ids_of_a_bert_vocabulary_are_those_of_the_library(tmp_path, lines):
    path = tmp_path / "vocab.txt"
    path.write_bytes("".join(f"{line}\n" for line in [*BERT_SPECIALS, *lines]).encode())
    tree, _ = vocabulary.bert_tree(str(path), lowercase=True)
    assert tree["model"]["vocab"] == tokenizers.models.WordPiece.read_file(str(path))


BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def test_special_tokens_are_no_words_in_lower_case(tmp_path):
    """A text may hold `[sep]`; only the special token itself is one."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*BERT_SPECIALS, "[", "]", "sep", "a"]) + "\n")
    tree, _ = vocabulary.bert_tree(str(path), lowercase=True)
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(tree))
    assert tokenizer.encode("a[SEP]a", add_special_tokens=False).ids == [8, 3, 8]
    assert tokenizer.encode("a[sep]a", add_special_tokens=False).ids == [8, 5, 7, 6, 8]


def marked(path, folder):
    """A copy of a file with a byte-order mark before it."""
    copy = folder / Path(path).name
    copy.write_bytes(codecs.BOM_UTF8 + Path(path).read_bytes())
    return str(copy)


def test_a_byte_order_mark_before_a_vocabulary_belongs_to_no_token(tmp_path, gpt2_files, bert_vocabulary):
    for kind, files in (
        ("GPT2BPETokenizer", gpt2_files),
        ("BertWordPieceCase", {"vocab_file": bert_vocabulary}),
    ):
        copies = {name: marked(path, tmp_path) for name, path in files.items()}
        one, two = (load(TokenizerConfig(tokenizer_type=kind, **f)) for f in (files, copies))
        assert one.fingerprint == two.fingerprint
