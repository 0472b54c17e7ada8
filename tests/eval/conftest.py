"""Models that the tests of eval share: a random GPT-2 of transformers, and a BERT trained for two steps."""

import json
import types

import pytest
import torch

from mt.cli import call
from mt.eval.lm import LanguageModel
from mt.tests.eval.labelled_data import ANIMALS, COLOURS, WORDS

POSITIONS = 64


class ByteTokenizer:
    """Ids 0 to 255 are UTF-8 bytes; 256 is the end-of-document token."""

    bos, eod, vocab_size = None, 256, 257

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class TokenCache:
    """A cache of tokens by position, without keys and values: each pass computes the whole text again."""

    def __init__(self, batch, max_length):
        self.tokens = torch.zeros((batch, max_length), dtype=torch.int64)


class TransformersModel(torch.nn.Module):
    """transformers' GPT2LMHeadModel with the methods that mt.eval calls."""

    def __init__(self, gpt2):
        super().__init__()
        self.gpt2 = gpt2

    def forward(self, tokens, *, positions=None, cache=None, lengths=None, at=None):
        hidden = self._hidden(tokens, positions, cache)
        return hidden if at is None else hidden[at]

    def _hidden(self, tokens, positions, cache):
        if cache is None:
            return self.gpt2.transformer(tokens, position_ids=positions).last_hidden_state
        rows = torch.arange(len(tokens))[:, None]
        cache.tokens[rows, positions] = tokens
        return self.gpt2.transformer(cache.tokens).last_hidden_state[rows, positions]

    def log_likelihoods(self, hidden, targets):
        logprobs = self.logits(hidden).log_softmax(-1)
        return logprobs.gather(1, targets[:, None])[:, 0], logprobs.argmax(1) == targets

    def logits(self, hidden):
        return self.gpt2.lm_head(hidden)

    def new_cache(self, batch, max_length):
        return TokenCache(batch, max_length)


@pytest.fixture(autouse=True)
def one_thread():
    """A second thread makes such small matrix products slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def gpt2():
    """GPT-2 with 3 layers and large weights, so that its distributions are far from uniform."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=257,
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=3,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=256,
        attn_implementation="eager",
    )
    torch.manual_seed(1)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture
def language_model(gpt2):
    return LanguageModel(TransformersModel(gpt2), ByteTokenizer(), max_length=POSITIONS, batch_size=4)


@pytest.fixture
def checkpoint(gpt2, monkeypatch, tmp_path):
    """A --load directory that opens as transformers' GPT-2, with a training sequence length of 32."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    opened = types.SimpleNamespace(
        config=types.SimpleNamespace(
            family="gpt", max_position_embeddings=POSITIONS, retro_add_retriever=False
        ),
        seq_length=32,
        load_model=lambda mesh=None: TransformersModel(gpt2),
        load_tokenizer=ByteTokenizer,
    )
    monkeypatch.setattr("mt.train.checkpoint.open.find_step", lambda path, step: path)
    monkeypatch.setattr("mt.train.checkpoint.open.NativeCheckpoint", lambda path: opened)
    return str(folder)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def bert(tmp_path_factory, vocabulary):
    """The directory of a run that trained a BERT for two steps."""
    folder = tmp_path_factory.mktemp("bert")
    sentences = " ".join(f"The {a} is {c} ." for a in ANIMALS for c in COLOURS)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": sentences}) + "\n" for _ in range(20)))
    tokenizer = ["--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocabulary]
    punkt = ["--input", str(folder / "text.jsonl"), "--output", str(folder / "punkt")]
    call(("data", "train-punkt"), punkt)
    call(
        ("data", "tokenize"),
        [
            "--input",
            str(folder / "text.jsonl"),
            "--output-prefix",
            str(folder / "text"),
            "--split-sentences",
            "--punkt",
            str(folder / "punkt"),
            "--workers",
            "1",
            *tokenizer,
        ],
    )
    model = (
        "--family bert --num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 48 --split"
        " 100,0,0 --eval-iters 0 --micro-batch-size 4 --train-iters 2 --lr 1e-3"
    )
    call(
        ("train",),
        [
            *model.split(),
            *tokenizer,
            "--data-path",
            str(folder / "text_text_sentence"),
            "--save",
            str(folder / "save"),
        ],
    )
    return str(folder / "save")
