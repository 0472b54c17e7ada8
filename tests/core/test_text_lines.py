"""Lines that another program writes to one of mt."""

import io
import json

import pytest

from mt.core.config import UserError
from mt.core.text_lines import read_texts


def test_texts_come_out_as_they_went_in():
    texts = ["a", "", "\u2028 \U0001f600", "x" * 100_000]
    lines = "\n\n".join(json.dumps({"id": 7, "text": text}) for text in texts)
    assert list(read_texts(io.BytesIO(lines.encode()))) == texts


@pytest.mark.parametrize(
    "line",
    [
        b'{"text":1}', b'{"text":["a","b"]}', b"null", b'"text"', b"[]", b"{}", b'{"text":"\\ud800"}',
        b"\xff\xfe", b'{"text":' + b"9" * 5000 + b"}", b"[" * 10**6, b'{"a":' * 10**5, b"{'text': 'a'}",
        b"text", b'{"text":"a',
    ],
    ids=lambda line: repr(line[:12]),
)  # fmt: skip
def test_another_line_is_one_message(line):
    with pytest.raises(UserError, match="standard input, line 2") as caught:
        list(read_texts(io.BytesIO(b'{"text":"a"}\n' + line + b"\n")))
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()
