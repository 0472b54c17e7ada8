"""Texts on which tokenizers are compared, and helpers of several test files."""

import functools
import pickle

from hypothesis import strategies as st

from mt.tokenizer.tokenizer import TokenizerConfig, VocabularyTokenizer, load

TEXTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? 12345 times!",
    "Ein Käfer läuft über die Straße; les élèves étaient déjà là.",
    "def f(x):\n    return x ** 2  # squared\n\n\nprint(f(10))",
    "日本語のテキストと 中文 and 🙂 emoji 👩‍👩‍👧‍👦",
] * 5


RARE_TEXTS = st.sampled_from(
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
    | RARE_TEXTS
    | st.text("0123456789 ", max_size=20),
    max_size=8,
).map("".join)


@functools.lru_cache
def reference(tokenizer: VocabularyTokenizer):
    """The same tokenizer with the other backend."""
    twin = pickle.loads(pickle.dumps(tokenizer))
    twin.backend = "tokenizers"
    return twin


def sentencepiece_of(model, kind="GPTSentencePieceTokenizer", allow_special=False, **settings):
    return load(
        TokenizerConfig(tokenizer_type=kind, tokenizer_model=str(model), **settings),
        allow_special=allow_special,
    )
