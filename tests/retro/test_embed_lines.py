"""`mt retro embed-lines`, compared with the embedder that it runs."""

import io
import json

import numpy as np
import pytest

from mt.core.config import UserError
from mt.retro import embed_lines
from mt.retro.embed_lines import EmbedLinesConfig


class Embedder:
    """Vectors that say which text they are of; the batches are kept."""

    def __init__(self, directory):
        self.batches = []

    def __call__(self, texts):
        self.batches.append(len(texts))
        return np.array([[len(text), 1, 0] if text else [0, 0, 0] for text in texts], np.float32)


class Stream(io.StringIO):
    def __init__(self):
        super().__init__()
        self.buffer = io.BytesIO()


def test_a_vector_of_length_one_is_written_for_every_line_in_order(monkeypatch):
    texts = ["a" * n for n in (5, 0, 700, 3, 900, 2)]
    out = Stream()
    monkeypatch.setattr(embed_lines, "Embedder", Embedder)
    monkeypatch.setattr(embed_lines, "BATCH_CHARS", 700)
    monkeypatch.setattr(
        "sys.stdin",
        io.TextIOWrapper(io.BytesIO("".join(json.dumps({"text": t}) + "\n" for t in texts).encode())),
    )
    monkeypatch.setattr("sys.stdout", out)
    embed_lines.embed_lines(EmbedLinesConfig())
    found = np.frombuffer(out.buffer.getvalue(), "<f2").reshape(-1, 3).astype(float)
    expected = [[len(t), 1, 0] / np.hypot(len(t), 1) if t else [0, 0, 0] for t in texts]
    assert found == pytest.approx(np.array(expected), abs=1e-3)


def test_a_line_without_a_text_is_named(monkeypatch):
    monkeypatch.setattr(embed_lines, "Embedder", Embedder)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"txt": 1}\n')))
    with pytest.raises(UserError, match="standard input, line 1: has no text"):
        embed_lines.embed_lines(EmbedLinesConfig())
