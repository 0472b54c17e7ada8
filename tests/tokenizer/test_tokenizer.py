"""The tokenizers, beside transformers, `tokenizers` and vocabularies worked by hand."""

import functools
import importlib.metadata
import json
import pickle
import types
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core import config
from mt.tokenizer.tokenizer import PROBE, TokenizerConfig, VocabularyTokenizer, load, load_directory
from mt.tokenizer.train import TrainTokenizerConfig, train_tokenizer
from mt.tokenizer.vocabulary import TIKTOKEN_SPECIALS

TEXTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? 12345 times!",
    "Ein Käfer läuft über die Straße; les élèves étaient déjà là.",
    "def f(x):\n    return x ** 2  # squared\n\n\nprint(f(10))",
    "日本語のテキストと 中文 and 🙂 emoji 👩‍👩‍👧‍👦",
] * 5


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "in.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, documents):
    """The directory of a small byte-level BPE."""
    folder = tmp_path_factory.mktemp("trained") / "tok"
    train_tokenizer(TrainTokenizerConfig(input=(str(documents),), output=str(folder), vocab_size=400))
    return folder


@pytest.fixture(scope="module")
def gpt2(gpt2_files):
    return load(TokenizerConfig(**gpt2_files))


@pytest.fixture(scope="module")
def bpe(trained):
    return load_directory(trained)


@functools.lru_cache
def reference(tokenizer: VocabularyTokenizer):
    """The same vocabulary, read by the other backend."""
    twin = pickle.loads(pickle.dumps(tokenizer))
    twin.backend = "tokenizers"
    return twin


SPICE = st.sampled_from(
    [
        " " * 40,
        "\n\n \t",
        "'ll",
        "'S",
        "🇩🇪",
        "👩‍👩‍👧‍👦",
        "e\u0301",
        "\u00a0",
        "\u2028",
        "\x85",
        "１２３",
        "٣",
        "\ufdd0",
        "<|endoftext|>",
        "<|",
        "_",
        "\ufeff",
    ]
)
ANY_TEXT = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | SPICE
    | st.text("0123456789 ", max_size=20),
    max_size=8,
).map("".join)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT)
def test_ids_do_not_depend_on_the_backend_and_decode_to_the_text(bpe, text):
    assert bpe.backend == "gigatoken"
    ids = bpe.encode(text)
    assert ids == reference(bpe).encode(text)
    assert bpe.decode(ids) == text


def test_that_the_backends_agree_is_noted_and_asked_again_of_another_version(trained, tmp_path, monkeypatch):
    asked = lambda: "_plain" in vars(load_directory(trained))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert [asked(), asked()] == [True, False]
    assert load_directory(trained).encode("some text") == reference(load_directory(trained)).encode(
        "some text"
    )
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version(name) + (".1" if name == "gigatoken" else "")
    )
    assert [asked(), asked()] == [True, False]


def test_what_the_backends_disagree_about_is_not_noted_and_a_cache_that_cannot_be_written_is_no_obstacle(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("mt.tokenizer.tokenizer.PROBE", "a")
        patch.setattr(
            VocabularyTokenizer,
            "_fast",
            property(lambda self: types.SimpleNamespace(encode=lambda text: np.array([0]))),
        )
        assert load_directory(trained).backend == "tokenizers"
        assert not list(tmp_path.rglob("*"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert load_directory(trained).backend == "gigatoken"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: exec("raise RuntimeError('no home')"))
    assert load_directory(trained).backend == "gigatoken"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ANY_TEXT)
def test_gpt2_ids_do_not_depend_on_the_backend(gpt2, text):
    assert gpt2.backend == "gigatoken"
    assert gpt2.encode(text) == reference(gpt2).encode(text)
    assert gpt2.decode(gpt2.encode(text)) == text


def test_gpt2_gives_the_ids_that_transformers_gives(gpt2_files, gpt2, speeches):
    from transformers import GPT2Tokenizer

    theirs = GPT2Tokenizer(vocab=gpt2_files["vocab_file"], merges=gpt2_files["merge_file"])
    for text in [*TEXTS, PROBE, *speeches[:20]]:
        assert gpt2.encode(text) == theirs(text)["input_ids"]
    assert (gpt2.vocab_size, gpt2.eod) == (50257, 50256)


def test_a_special_token_written_in_a_text_is_text(gpt2, bpe):
    for tokenizer in (gpt2, bpe, reference(gpt2), reference(bpe)):
        ids = tokenizer.encode("one<|endoftext|>two")
        assert tokenizer.eod not in ids
        assert tokenizer.decode(ids) == "one<|endoftext|>two"
        assert tokenizer.decode([tokenizer.eod]) == "<|endoftext|>"
        flat, lengths = tokenizer.encode_batch(["<|endoftext|>", "", "x"])
        assert tokenizer.eod not in flat
        assert lengths.tolist() == [len(tokenizer.encode("<|endoftext|>")), 0, 1]


def test_a_unigram_vocabulary_does_not_take_its_special_pieces_from_a_text(tmp_path):
    from tokenizers import models, pre_tokenizers

    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((c, -3.0) for c in "▁abc</s>")]
    tree = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tree.pre_tokenizer = pre_tokenizers.Metaspace()
    tree.add_special_tokens(["</s>"])
    tree.save(str(tmp_path / "tokenizer.json"))
    assert 1 in tree.encode("a</s>b").ids, "the trap is there"
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


def test_a_tokenizer_that_cuts_or_pads_cuts_and_pads_no_document(tmp_path, bpe):
    tree = tokenizers.Tokenizer.from_str(bpe._json)
    tree.enable_truncation(4)
    tree.enable_padding(length=16)
    tree.save(str(tmp_path / "tokenizer.json"))
    assert load_directory(tmp_path).encode("the quick brown fox jumps") == bpe.encode(
        "the quick brown fox jumps"
    )


@pytest.mark.parametrize("lower", [True, False])
def test_bert_gives_raw_pieces_as_transformers_does_without_special_tokens(bert_vocabulary, lower):
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


def test_the_trivial_tokenizers_follow_megatron():
    from megatron.core.tokenizers.text.libraries.bytelevel_tokenizer import ByteLevelTokenizer
    from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer

    null, their_null = (
        load(TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=100)),
        NullTokenizer(99),
    )
    assert null.encode("1 2 3") == their_null.text_to_ids("1 2 3")
    assert (null.eod, null.vocab_size) == (their_null.eod, their_null.vocab_size)
    level, theirs = load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer")), ByteLevelTokenizer()
    assert level.encode("naïve 🙂") == theirs.text_to_ids("naïve 🙂")
    assert (level.eod, level.vocab_size) == (theirs.eod, theirs.vocab_size)
    assert level.decode([*level.encode("naïve 🙂"), level.eod, 300]) == "naïve 🙂"
    assert null.decode([1, 2]) == "1 2"
    other = load(
        TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=100, null_tokenizer_eod_id=7)
    )
    assert (other.eod, other.vocab_size) == (7, 100)
    assert other.fingerprint != null.fingerprint


def test_a_batch_is_its_texts_one_by_one(bpe):
    for tokenizer in (bpe, reference(bpe), load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer"))):
        texts = ["", *TEXTS, "", PROBE]
        flat, lengths = tokenizer.encode_batch(texts)
        assert (flat.dtype, lengths.dtype) == (np.int32, np.int32)
        assert [p.tolist() for p in np.split(flat, np.cumsum(lengths)[:-1])] == [
            tokenizer.encode(t) for t in texts
        ]
        assert [len(a) for a in tokenizer.encode_batch([])] == [0, 0]


def test_a_saved_tokenizer_is_the_same_tokenizer(tmp_path, bert_vocabulary, gpt2, bpe):
    bert = load(TokenizerConfig(tokenizer_type="BertWordPieceCase", vocab_file=bert_vocabulary))
    trivial = [
        load(TokenizerConfig(tokenizer_type=t, tokenizer_vocab_size=300))
        for t in ("NullTokenizer", "ByteLevelTokenizer")
    ]
    for number, tokenizer in enumerate([gpt2, bpe, bert, *trivial]):
        tokenizer.save(tmp_path / str(number))
        again = load_directory(tmp_path / str(number))
        assert (again.fingerprint, again.eod, again.vocab_size) == (
            tokenizer.fingerprint,
            tokenizer.eod,
            tokenizer.vocab_size,
        )
        assert again.encode("1 2 3") == tokenizer.encode("1 2 3")
    assert len({t.fingerprint for t in (gpt2, bpe, bert, *trivial)}) == 5


def test_transformers_reads_what_is_saved(tmp_path, bpe):
    from transformers import AutoTokenizer

    bpe.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(TEXTS[1])["input_ids"] == bpe.encode(TEXTS[1])
    assert theirs.eos_token_id == bpe.eod


def test_training_gives_the_same_bytes_again_and_both_forms_give_the_same_ids(tmp_path, documents, trained):
    train_tokenizer(
        TrainTokenizerConfig(input=(str(documents),), output=str(tmp_path / "again"), vocab_size=400)
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()
    a = load(TokenizerConfig(tokenizer_model=str(trained)))
    b = load(TokenizerConfig(vocab_file=str(trained / "vocab.json"), merge_file=str(trained / "merges.txt")))
    assert a.encode(PROBE) == b.encode(PROBE)
    assert (a.eod, a.vocab_size) == (b.eod, b.vocab_size) == (0, 400)
    assert len(a.encode(TEXTS[0])) < len(TEXTS[0]) / 2, "it has learnt the text"


def test_a_sample_of_the_input_is_spread_over_it(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {i} " * 20}) + "\n" for i in range(2000)))
    made = train_tokenizer(
        TrainTokenizerConfig(
            input=(str(path),),
            output=str(tmp_path / "tok"),
            vocab_size=300,
            sample_bytes=path.stat().st_size // 4,
        )
    )
    assert 400 < made["counts"]["documents"] < 600


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no tokenizer is given"),
        ({"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "v"}, "needs --merge-file"),
        ({"tokenizer_type": "HuggingFaceTokenizer"}, "needs --tokenizer-model"),
        (
            {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "nowhere/tokenizer.json"},
            "nowhere/tokenizer.json: no such file",
        ),
        (
            {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "x", "vocab_file": "v"},
            "does not read vocab_file = v",
        ),
        ({"tokenizer_type": "NullTokenizer"}, "needs --tokenizer-vocab-size"),
        ({"tokenizer_type": "ByteLevelTokenizer", "tokenizer_vocab_size": 200}, "200 is too small"),
        ({"tokenizer_type": "ByteLevelTokenizer", "vocab_extra_ids": 2}, "does not read vocab_extra_ids"),
        (
            {"tokenizer_type": "ByteLevelTokenizer", "tokenizer_special_tokens": ("<a>",)},
            "does not read tokenizer_special_tokens",
        ),
        (
            {"tokenizer_model": "x", "tokenizer_sentencepiece_ignore_extra_whitespaces": False},
            "HuggingFaceTokenizer does not read tokenizer_sentencepiece_ignore_extra_whitespaces = False",
        ),
        ({"tokenizer_model": "x", "tokenizer_special_tokens": ("<a>", "<a>")}, "names a token twice"),
        (
            {
                "tokenizer_type": "TikTokenizer",
                "tokenizer_model": "x",
                "tokenizer_special_tokens": ("<unk>", "<s>", "</s>"),
            },
            "lacks <mask> <pad> <cls> <sep>, which TikTokenizer needs",
        ),
        (
            {
                "tokenizer_type": "TikTokenizer",
                "tokenizer_model": "x",
                "tokenizer_special_tokens": (*TIKTOKEN_SPECIALS, "<a>"),
                "tiktoken_num_special_tokens": 7,
            },
            "names 8 tokens, more than tiktoken_num_special_tokens = 7",
        ),
        (
            {"tokenizer_type": "NullTokenizer", "tokenizer_vocab_size": 9, "null_tokenizer_eod_id": 9},
            r"null_tokenizer_eod_id = 9 must be in \[0, 9\)",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(config.UserError, match=message):
        load(TokenizerConfig(**settings))


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


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model(request, tmp_path_factory):
    """A small sentencepiece model file, with <pad> among its pieces for one of the two kinds."""
    import sentencepiece

    folder = tmp_path_factory.mktemp(request.param)
    pad = {"pad_id": 3} if request.param == "bpe" else {}
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([*TEXTS, PROBE.replace("\x00", "")]),
        model_prefix=str(folder / "m"),
        vocab_size=600,
        model_type=request.param,
        hard_vocab_limit=False,
        byte_fallback=request.param == "bpe",
        minloglevel=2,
        user_defined_symbols=["<tab>"],
        **pad,
    )
    return folder / "m.model"


def sentencepiece_of(model, kind="GPTSentencePieceTokenizer", allow_special=False, **settings):
    return load(
        TokenizerConfig(tokenizer_type=kind, tokenizer_model=str(model), **settings),
        allow_special=allow_special,
    )


def test_sentencepiece_gives_the_ids_of_megatrons_wrapper(model):
    from megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer import SentencePieceTokenizer

    theirs = SentencePieceTokenizer(str(model))
    for kind in ("GPTSentencePieceTokenizer", "Llama2Tokenizer"):
        ours = sentencepiece_of(model, kind)
        for text in [*TEXTS, PROBE, "", "a</s>b", "x<tab>y", "  two  spaces "]:
            assert ours.encode(text) == theirs.text_to_ids(text)
            assert ours.eod not in ours.encode(text)
        assert (ours.vocab_size, ours.bos, ours.eod) == (theirs.vocab_size, theirs.bos_id, theirs.eos_id)
        assert ours.decode(ours.encode(TEXTS[0])) == TEXTS[0]


def test_the_legacy_sentencepiece_adds_its_special_tokens_after_the_pieces(model):
    from megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer import SentencePieceTokenizer

    plain = sentencepiece_of(model)
    size, has_pad = plain.vocab_size, "bpe" in str(model)
    ours = sentencepiece_of(model, "SentencePieceTokenizer", vocab_extra_ids=2)
    added = [
        "<CLS>",
        "<SEP>",
        "<EOD>",
        "<MASK>",
        *([] if has_pad else ["<PAD>"]),
        "<extra_id_0>",
        "<extra_id_1>",
    ]
    assert ours.vocab_size == size + len(added)
    assert (ours.bos, ours.eod) == (plain.bos, size + 2)
    assert ours.decode(range(size, ours.vocab_size)) == "".join(added)
    for text in TEXTS:
        assert ours.encode(text) == plain.encode(text)
    text = "one<EOD>two <extra_id_1> three</s><SEP>"
    assert max(ours.encode(text)) < size, "by default a literal is text"
    theirs = SentencePieceTokenizer(
        str(model),
        legacy=True,
        special_tokens=[
            "<CLS>",
            "<SEP>",
            "<EOD>",
            "<MASK>",
            *([] if has_pad else ["<PAD>"]),
            "<s>",
            "</s>",
            "<extra_id_0>",
            "<extra_id_1>",
        ],
        trim_spm_separator_after_special_token=False,
    )
    assert sentencepiece_of(model, "SentencePieceTokenizer", allow_special=True, vocab_extra_ids=2).encode(
        text
    ) == theirs.text_to_ids(text)


def test_spaces_beyond_the_first_are_kept_where_that_is_asked_as_megatrons_wrapper_keeps_them(model):
    from megatron.core.tokenizers.text.libraries.sentencepiece_tokenizer import SentencePieceTokenizer

    keep = {"tokenizer_sentencepiece_ignore_extra_whitespaces": False}
    plain, ours = sentencepiece_of(model), sentencepiece_of(model, **keep)
    texts = ["  two  spaces ", "a   b", "one space", "", " ", *TEXTS]
    assert ours.decode(ours.encode("a   b")) == "a   b" != plain.decode(plain.encode("a   b"))
    assert ours.fingerprint != plain.fingerprint
    # where bytes stand for unknown characters, the original leaves two bytes of its sign in
    if "unigram" in str(model):
        theirs = SentencePieceTokenizer(str(model), ignore_extra_whitespaces=False)
        assert [ours.encode(t) for t in texts] == [theirs.text_to_ids(t) for t in texts]
    legacy = sentencepiece_of(
        model, "SentencePieceTokenizer", tokenizer_special_tokens=("<a>", "<b>"), **keep
    )
    assert legacy.encode("a   b") == ours.encode("a   b")
    assert legacy.decode([legacy.vocab_size - 2, legacy.vocab_size - 1]) == "<a><b>"


def test_a_saved_sentencepiece_model_is_the_same_tokenizer(tmp_path, model):
    special = {
        "tokenizer_special_tokens": ("<a>",),
        "tokenizer_sentencepiece_ignore_extra_whitespaces": False,
    }
    several = [
        sentencepiece_of(model),
        *(
            sentencepiece_of(model, "SentencePieceTokenizer", **more)
            for more in ({"vocab_extra_ids": 3}, special)
        ),
    ]
    for number, ours in enumerate(several):
        ours.save(tmp_path / str(number))
        again = pickle.loads(pickle.dumps(load_directory(tmp_path / str(number))))
        assert (again.fingerprint, again.bos, again.eod, again.vocab_size) == (
            ours.fingerprint,
            ours.bos,
            ours.eod,
            ours.vocab_size,
        )
        flat, lengths = again.encode_batch([TEXTS[0], "", "x"])
        assert flat.tolist() == [*ours.encode(TEXTS[0]), *ours.encode("x")]
        assert lengths.tolist() == [len(ours.encode(TEXTS[0])), 0, len(ours.encode("x"))]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, gpt2):
    """GPT-2's tokens as the JSON list that Megatron-LM's TikTokenizer reads: the bytes first, then by rank."""
    import base64

    import gigatoken

    known = gigatoken.Tokenizer.from_json(gpt2._json).vocab
    tokens = [bytes([b]) for b in range(256)] + [known[i] for i in range(256, 19999)]
    tokens.insert(300, b" qzjqzxj")  # no two tokens make it: only a word that is it becomes it
    path = tmp_path_factory.mktemp("ranks") / "tekken.json"
    path.write_text(
        json.dumps(
            [
                {
                    "rank": i,
                    "token_bytes": base64.b64encode(t).decode(),
                    "token_str": t.decode(errors="replace"),
                }
                for i, t in enumerate(tokens)
            ]
        )
    )
    return path


@pytest.fixture(scope="module", params=["v1", "v2"])
def tiktokens(request, ranks):
    """(ours, megatron-core's, which asks tiktoken)"""
    from megatron.core.tokenizers.text.libraries.tiktoken_tokenizer import TikTokenTokenizer

    ours = load(
        TokenizerConfig(
            tokenizer_type="TikTokenizer",
            tokenizer_model=str(ranks),
            tokenizer_vocab_size=15000,
            tiktoken_num_special_tokens=100,
            tiktoken_pattern=request.param,
        )
    )
    return ours, TikTokenTokenizer(
        str(ranks), vocab_size=15000, num_special_tokens=100, pattern=request.param
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_special_tokens_that_are_named_are_added_and_are_text_in_a_text(tmp_path, gpt2_files, gpt2, ranks):
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


def test_special_tokens_in_a_text_are_control_ids_where_that_is_allowed(gpt2_files, gpt2, ranks):
    allowed = load(TokenizerConfig(**gpt2_files), allow_special=True)
    assert allowed.encode("one<|endoftext|>two") == [*gpt2.encode("one"), gpt2.eod, *gpt2.encode("two")]
    assert reference(allowed).encode("one<|endoftext|>two") == allowed.encode("one<|endoftext|>two")
    assert allowed.fingerprint == gpt2.fingerprint, "it is the same vocabulary"
    tik = load(TokenizerConfig(tokenizer_type="TikTokenizer", tokenizer_model=str(ranks)), allow_special=True)
    assert tik.encode("a</s>") == [*tik.encode("a"), 2]


def test_the_beginning_token_is_known_where_the_files_tell_it(tmp_path, bert_vocabulary, gpt2, bpe):
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
def test_ranks_that_are_not_tiktokens_are_named(tmp_path, entries, message):
    (tmp_path / "r.json").write_text(json.dumps(entries))
    with pytest.raises(config.UserError, match=message):
        load(TokenizerConfig(tokenizer_type="TikTokenizer", tokenizer_model=str(tmp_path / "r.json")))


def test_models_that_do_not_fit_are_named(tmp_path, ranks):
    (tmp_path / "m.model").write_bytes(b"nonsense")
    with pytest.raises(config.UserError, match=r"m\.model: is not a model that sentencepiece reads"):
        sentencepiece_of(tmp_path / "m.model")
    with pytest.raises(config.UserError, match="nowhere: no such file"):
        sentencepiece_of("nowhere")
    with pytest.raises(config.UserError, match="does not read vocab_extra_ids = 3"):
        sentencepiece_of("m.model", vocab_extra_ids=3)
    with pytest.raises(
        config.UserError,
        match=r"has 20,000 tokens, fewer than tokenizer_vocab_size = 90,000 less the 1,000 special ones",
    ):
        load(
            TokenizerConfig(
                tokenizer_type="TikTokenizer", tokenizer_model=str(ranks), tokenizer_vocab_size=90000
            )
        )
    with pytest.raises(config.UserError, match="does not read tiktoken_pattern = v1"):
        TokenizerConfig(tokenizer_type="ByteLevelTokenizer", tiktoken_pattern="v1")
