"""Windows of a token stream that is longer than a model's sequences, each token scored once."""

from __future__ import annotations

from collections.abc import Iterator


def rolling_windows(num_tokens: int, seq_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, end): tokens[start:end] is a window, and tokens[first:end] are its targets.

    Every token but the first is a target exactly once. Example: 8 tokens, seq_length 4 and stride 2 give
    (0, 1, 5), (2, 5, 7), (4, 7, 8). Megatron-LM appends seq_length / stride - 1 windows of padding only;
    they have no targets and are omitted here.
    """
    yield 0, 1, min(seq_length + 1, num_tokens)
    for start in range(stride, num_tokens - 1 - seq_length + stride, stride):
        first = start + seq_length - stride + 1
        yield start, first, min(start + seq_length + 1, num_tokens)


def document_windows(ids: list[int], seq_length: int) -> Iterator[tuple[list[int], int]]:
    """(a window's ids, the index of its first target) for LanguageModel.rolling, as lm-eval cuts a document.

    ids: the prefix token, then the document. Each window has seq_length + 1 ids, or all where there are
    fewer. Every id but the first is a target exactly once. Only the last window may overlap the one before.
    """
    first = 1
    while first < len(ids):
        end = min(first + seq_length, len(ids))
        start = max(0, end - seq_length - 1)
        yield ids[start:end], first - start
        first = end
