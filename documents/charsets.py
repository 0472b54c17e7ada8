"""Makes UTF-8 of text files in other encodings, and drops byte-order marks.

A file that begins with a byte-order mark of UTF-8, UTF-16 or UTF-32 is read as the mark says. Any other file
has the encoding that the user names (`--encoding`), UTF-8 if none is named. Bytes that are wrong in it become
bytes that are wrong in UTF-8, so that who reads lines or records finds the one that has them.

Names of encodings are those of Python and those of the WHATWG's encoding standard (encoding.spec.whatwg.org).
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import io
from pathlib import Path
from typing import IO

from ..core.unicode import MARK
from . import compression

UTF8 = "utf-8"
UTF8_NAMES = (UTF8, "utf-8-sig")
RULES = "lead bytes"  # of `_escape`; enters the keys of what reads a file of another encoding
# Codecs of Python that are no encodings of files: those of domain names take quadratic time, the others make
# surrogates.
NO_CHARSETS = frozenset(
    ("idna", "punycode", "raw-unicode-escape", "unicode-escape", "utf-7", "mbcs", "oem", "undefined")
)
# Labels of the WHATWG's standard that Python does not know.
# fmt: off
LABELS = {
    "utf-8": "unicode-1-1-utf-8 x-unicode20utf8",
    "iso8859-6": "csiso88596e csiso88596i iso-8859-6-e iso-8859-6-i",
    "iso8859-7": "sun_eu_greek",
    "iso8859-8": "csiso88598e iso-8859-8-e visual csiso88598i iso-8859-8-i logical",
    "iso8859-15": "csiso885915 csisolatin9",
    "koi8-r": "koi koi8",
    "koi8-u": "koi8-ru",
    "mac-roman": "csmacintosh mac x-mac-roman",
    "cp874": "dos-874 windows-874",
    "cp1250": "x-cp1250", "cp1251": "x-cp1251", "cp1252": "x-cp1252", "cp1253": "x-cp1253",
    "cp1254": "x-cp1254", "cp1255": "x-cp1255", "cp1256": "x-cp1256", "cp1257": "x-cp1257",
    "cp1258": "x-cp1258",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "csgb2312 gb_2312 gb_2312-80 x-gbk",
    "big5hkscs": "cn-big5 x-x-big5",
    "euc-jp": "cseucpkdfmtjapanese x-euc-jp",
    "cp932": "windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 iso-ir-149 ks_c_5601-1989 ksc_5601 windows-949",
    "utf-16-be": "unicodefffe",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff",
}
# fmt: on
UNMARKED = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}
MARKS = (  # the marks of UTF-32 first: the one of UTF-16 begins one of them
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (MARK, UTF8),
)


def python_name(name: str) -> str | None:
    """Python's name of an encoding, None if there is no such encoding of text."""
    label = name.strip().lower()
    label = next((codec for codec, labels in LABELS.items() if label in labels.split()), label)
    try:
        found = codecs.lookup(label)
    except (LookupError, ValueError):
        return None
    is_text = getattr(found, "_is_text_encoding", True)  # false of base64 and other codecs of bytes
    return found.name if is_text and found.name not in NO_CHARSETS else None


def encoding_rule(name: str) -> tuple[bool, str]:
    """The rule of the setting `encoding`, for config.check."""
    return (
        python_name(name) is not None,
        f"encoding = {name} is not an encoding of text; use a name such as utf-8, utf-16, windows-1252,"
        " shift_jis or gb18030",
    )


def marked_encoding(beginning: bytes) -> str | None:
    """The encoding whose byte-order mark a file begins with, None if there is no mark."""
    return next((name for mark, name in MARKS if beginning.startswith(mark)), None)


def file_encoding(path: str | Path, encoding: str) -> str:
    """Python's name of the encoding of a file that may begin with a mark. encoding: of files without one."""
    beginning = b""
    with contextlib.suppress(*compression.BROKEN):  # what is damaged is told where the file is read
        if compression.ending(str(path)):
            with compression.open_binary(path) as file:
                beginning = file.peek(4)[:4]
        else:  # without a buffer, which takes longer than the rest for a small file
            with open(path, "rb", buffering=0) as plain:
                beginning = plain.read(4)
    return marked_encoding(beginning) or python_name(encoding) or encoding


def open_utf8(path: str | Path, encoding: str = UTF8) -> io.BufferedReader:
    """Opens a text file, decompressed, for reading UTF-8.

    encoding: of files without a mark. A mark at the beginning stays, as that of UTF-8; `without_mark` of
    core/unicode.py drops it.
    """
    file = compression.open_binary(path)
    named = python_name(encoding) or encoding
    # Python's decoders of these need a mark; the WHATWG's standard has the order of bytes without one.
    found = marked_encoding(file.peek(4)[:4]) or UNMARKED.get(named, named)
    if found in UTF8_NAMES:
        return file
    return io.BufferedReader(_Transcoded(file, found), compression.READ_BYTES)


class _Transcoded(compression.PieceReader):
    """The text of a file as UTF-8, in which the bytes that `_escape` gives for wrong ones are wrong too."""

    def __init__(self, file: IO[bytes], encoding: str):
        super().__init__(file)
        _register()
        self._decoder = codecs.getincrementaldecoder(encoding)("mt.wrong-bytes")
        self._ended = False

    def next_piece(self) -> bytes | None:
        if self._ended:
            return None
        block = self._file.read(compression.READ_BYTES)
        self._ended = not block
        before = self._decoder.getstate()
        try:
            text = self._decoder.decode(block, final=self._ended)
        except UnicodeError:
            # The decoders of ISO-2022 keep 8 bytes for the next block. No escape sequence that is right is as
            # long as that, so these are wrong, as they would be at the end of the file.
            self._decoder.setstate(before)
            text = self._decoder.decode(block, final=True)
        return text.encode(UTF8, "surrogateescape")


@functools.cache
def _register() -> None:
    codecs.register_error("mt.wrong-bytes", _escape)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """The error handler: a surrogate for each wrong byte, as PEP 383 has it for bytes beyond ASCII.

    A byte stays itself, or becomes 0xFF where it would be ASCII. Another 0xFF follows one that begins a
    character of UTF-8, since wrong bytes that stand together can be a character: two of EUC-KR are an "é".
    """
    assert isinstance(error, UnicodeDecodeError), "only decoders have this error handler"
    wrong = error.object[error.start : error.end]
    return "".join(map(_SURROGATES.__getitem__, wrong)), error.end


_SURROGATES = [
    "\udcff" if byte < 0x80 else f"{chr(0xDC00 + byte)}\udcff" if 0xC2 <= byte <= 0xF4 else chr(0xDC00 + byte)
    for byte in range(256)
]
