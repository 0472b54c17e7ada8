"""Small tokenizers of every kind, made once for each test file."""

import base64
import json

import pytest

from mt.tests.tokenizer.texts import TEXTS
from mt.tokenizer.tokenizer import PROBE, TokenizerConfig, load, load_directory
from mt.tokenizer.train import TrainTokenizerConfig, train_tokenizer


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


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model(request, tmp_path_factory):
    """A small sentencepiece model file; the BPE model has the piece <pad>, the unigram model has not."""
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


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, gpt2):
    """GPT-2's tokens as the JSON list of Megatron-LM's TikTokenizer: the bytes, then tokens by rank."""

    import gigatoken

    known = gigatoken.Tokenizer.from_json(gpt2._json).vocab
    tokens = [bytes([b]) for b in range(256)] + [known[i] for i in range(256, 19999)]
    tokens.insert(300, b" qzjqzxj")  # no merge makes it: only a whole word can become this token
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
    """(our tokenizer, that of megatron-core, which calls tiktoken)."""
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
