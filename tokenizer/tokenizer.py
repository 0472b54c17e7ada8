"""Tokenizers: encode text to token ids and decode ids, for every tokenizer type, with the fastest backend.

`load` makes a `Tokenizer` from a `TokenizerConfig`, `load_directory` from a directory that `save` or Hugging
Face wrote.

Every vocabulary except sentencepiece's and the two trivial ones is kept as the tree of a Hugging Face
`tokenizer.json` (vocabulary.py). Encoding adds no [CLS], [SEP] or BOS. A special token written in a document,
such as `<|endoftext|>`, is encoded as ordinary characters and never becomes its control id, unless
`allow_special` is set.

Two backends read the tree: `tokenizers`, the reference, and `gigatoken`, which is some fifty times faster.
gigatoken is used only if both give the same ids for a probe text on which backends have disagreed, so ids
never depend on what is installed. A sentencepiece model is read by its own library.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Protocol, TypedDict, TypeVar

import numpy as np
import orjson
import xxhash

from ..core import manifest, paths
from ..core.config import UserError, check, configuration, option, shown
from ..core.manifest import cache_folder
from ..core.parsing import JSON_BYTES, Range, check_value, read_bytes, read_json
from ..core.paths import check_exists
from .vocabulary import (
    TIKTOKEN_SPECIALS,
    Delimiters,
    Tree,
    add_specials,
    bert_tree,
    gpt2_tree,
    hide_specials,
    hugging_face_tree,
    llama3_tree,
    tiktoken_tree,
    token_ids,
)

# Characters on which backends have disagreed: contractions, combining marks, emoji, spaces of every kind and
# length, digits of every script, control and unassigned characters, line ends.
PROBE = (
    "It's THEY'RE we'll I'M don't 'S ''s x'd a'B naïve nai\u0308ve ſt\u0323\u0307 Ǆ ǅ ß İ ı Ω\n\n\n  \n \t\t"
    " x\r\ny\rz   "
    + " " * 70
    + "a"
    + " " * 8
    + "\n"
    + "\u00a0\u2003\u3000\u200b\u2028\u2029\u0085\x1c\x1f\x0b\x0c \ufeff "
    + "0 12 123456789012345 ٣٤٥ ⅷ ² ½ ४ 1.5e-3 3,000 $9.99 100% v2.0_rc1 snake_case CamelCase __x__ "
    + "中文字符 日本語テキスト 한국어 עברית العربية हिन्दी ไทย 🙂🙃 👩‍👩‍👧‍👦 🇩🇪 ❤️ \U0001f9d1\U0001f3fd‍🚀 "
    + "\x00\x01\x07\x08\x1b\x7f\x80\x9f \ufdd0 \uffff \U000e0001 \U0010ffff \ue000 ­ "
    + '<b>html</b> &amp; http://a.b/c?d=e#f `code` {"k": [1, 2]} // /* */ --- *** ... !!! ??? ——— “q” ‘r’ … '
    " end "
)

# Megatron-LM puts this character between two spaces, so that sentencepiece keeps both. Few texts and
# vocabularies contain it.
MARK = "☯"
EXTRA_SPACE = re.compile(r"(?<= )(?= )|^ | $")

T = TypeVar("T")


@configuration(group="tokenizer")
class TokenizerConfig:
    """The type of the tokenizer, its files and its special tokens."""

    tokenizer_type: (
        Literal[
            "GPT2BPETokenizer",
            "HuggingFaceTokenizer",
            "BertWordPieceLowerCase",
            "BertWordPieceCase",
            "SentencePieceTokenizer",
            "GPTSentencePieceTokenizer",
            "Llama2Tokenizer",
            "TikTokenizer",
            "NullTokenizer",
            "ByteLevelTokenizer",
        ]
        | None
    ) = option(
        None,
        "type of tokenizer (default: GPT2BPETokenizer if --merge-file is given, else HuggingFaceTokenizer)",
    )
    vocab_file: str | None = option(
        None, "vocab.json of GPT2BPETokenizer, vocab.txt of BertWordPiece", role="input"
    )
    merge_file: str | None = option(None, "merges.txt of GPT2BPETokenizer", role="input")
    tokenizer_model: str | None = option(
        None,
        "a tokenizer.json or its directory (HuggingFaceTokenizer), a .model file (SentencePiece, Llama2), the"
        " ranks of tiktoken as JSON (TikTokenizer)",
        role="input",
    )
    vocab_extra_ids: int = option(
        0, "number of sentinel tokens <extra_id_0>, <extra_id_1>, ... to add to the vocabulary (T5: 100)"
    )
    tokenizer_vocab_size: int | None = option(
        None,
        "NullTokenizer: number of ids, of which the last ends documents; ByteLevelTokenizer: number of ids"
        " (default: 512); TikTokenizer: number of ids to keep (default: 131072)",
    )
    tokenizer_special_tokens: tuple[str, ...] = option(
        (),
        "special tokens to add; TikTokenizer: all special tokens before the ranks, <unk> <s> </s> <mask>"
        " <pad> <cls> <sep> included",
    )
    tokenizer_sentencepiece_ignore_extra_whitespaces: bool = option(
        True, "sentencepiece: reduce runs of spaces to one space if the model does so; --no-...: keep them"
    )
    null_tokenizer_eod_id: int | None = option(
        None, "NullTokenizer: the id that ends documents (default: the last id)"
    )
    tiktoken_pattern: Literal["v1", "v2"] = option(
        "v2", "TikTokenizer: pattern that splits text before its bytes are merged"
    )
    tiktoken_num_special_tokens: int = option(1000, "TikTokenizer: number of special tokens before the ranks")

    def __post_init__(self) -> None:
        kind = self.kind
        needs, may = READS.get(kind, ((), ())) if kind else ((), ())
        given = {
            f.name
            for f in dataclasses.fields(TokenizerConfig)
            if f.name != "tokenizer_type" and getattr(self, f.name) != f.default
        }
        size, eod = self.tokenizer_vocab_size, self.null_tokenizer_eod_id
        specials, names = self.tiktoken_num_special_tokens, self.tokenizer_special_tokens
        lacking = [n for n in TIKTOKEN_SPECIALS if n not in names] if kind == "TikTokenizer" and names else []
        least = {"ByteLevelTokenizer": 258, "TikTokenizer": specials + 256}.get(kind or "", 2)
        check(
            *((n in given, f"tokenizer_type = {kind} needs --{n.replace('_', '-')}") for n in needs),
            *(
                (
                    n in (*needs, *may),
                    f"tokenizer_type = {kind} does not read {n} = {getattr(self, n)}; leave it out",
                )
                for n in sorted(given)
                if kind
            ),
            (
                size is None or size >= least,
                f"tokenizer_vocab_size = {size} is too small for {kind}: at least {least}",
            ),
            (self.vocab_extra_ids >= 0, f"vocab_extra_ids = {self.vocab_extra_ids} must not be negative"),
            (
                specials >= 7,
                (
                    f"tiktoken_num_special_tokens = {specials} must be at least 7: <unk> <s> </s> <mask>"
                    " <pad> <cls> <sep>"
                ),
            ),
            (
                len(set(names)) == len(names) and all(names),
                (
                    f"tokenizer_special_tokens = {' '.join(names)} names a token twice, or an empty one; name"
                    " each once"
                ),
            ),
            (
                not lacking,
                f"tokenizer_special_tokens lacks {' '.join(lacking)}, which TikTokenizer needs; add them",
            ),
            (
                kind != "TikTokenizer" or len(names) <= specials,
                (
                    f"tokenizer_special_tokens names {len(names)} tokens, more than"
                    f" tiktoken_num_special_tokens = {specials}; raise that"
                ),
            ),
            (
                eod is None or size is None or 0 <= eod < size,
                (
                    f"null_tokenizer_eod_id = {eod} must be in [0, {size}), the ids of tokenizer_vocab_size ="
                    f" {size}"
                ),
            ),
        )

    def check_inputs(self) -> None:
        """Raises UserError for files that are not there, before anything is read."""
        check_exists(self.vocab_file, self.merge_file, self.tokenizer_model)

    def check_given(self) -> None:
        """Raises UserError where nothing names a tokenizer."""
        if self.kind is None:
            raise UserError(
                "no tokenizer is given; pass --vocab-file and --merge-file, --tokenizer-model, or"
                " --tokenizer-type"
            )

    @property
    def kind(self) -> str | None:
        """The type. If it is not given, the files tell it; None if there are none."""
        if self.tokenizer_type is not None:
            return self.tokenizer_type
        if self.merge_file:
            return "GPT2BPETokenizer"
        return "HuggingFaceTokenizer" if self.tokenizer_model else None


# For every type of tokenizer: the settings that it needs, and others that it reads.
READS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "GPT2BPETokenizer": (("vocab_file", "merge_file"), ("vocab_extra_ids", "tokenizer_special_tokens")),
    "HuggingFaceTokenizer": (("tokenizer_model",), ("vocab_extra_ids", "tokenizer_special_tokens")),
    "BertWordPieceLowerCase": (("vocab_file",), ("vocab_extra_ids", "tokenizer_special_tokens")),
    "BertWordPieceCase": (("vocab_file",), ("vocab_extra_ids", "tokenizer_special_tokens")),
    "SentencePieceTokenizer": (
        ("tokenizer_model",),
        ("vocab_extra_ids", "tokenizer_special_tokens", "tokenizer_sentencepiece_ignore_extra_whitespaces"),
    ),
    "GPTSentencePieceTokenizer": (
        ("tokenizer_model",),
        ("tokenizer_sentencepiece_ignore_extra_whitespaces",),
    ),
    "Llama2Tokenizer": (("tokenizer_model",), ("tokenizer_sentencepiece_ignore_extra_whitespaces",)),
    "TikTokenizer": (
        ("tokenizer_model",),
        (
            "tokenizer_vocab_size",
            "tokenizer_special_tokens",
            "tiktoken_pattern",
            "tiktoken_num_special_tokens",
            "vocab_extra_ids",
        ),
    ),
    "NullTokenizer": (("tokenizer_vocab_size",), ("null_tokenizer_eod_id",)),
    "ByteLevelTokenizer": ((), ("tokenizer_vocab_size",)),
}


class Tokenizer(Protocol):
    """The interface of all tokenizers."""

    vocab_size: int  # all ids are below it
    bos: int | None  # the id that begins a document; None if the vocabulary has none
    eod: int | None  # the id that ends a document; None if the vocabulary has none
    fingerprint: str  # hex digest of everything on which ids depend

    def encode(self, text: str) -> list[int]: ...

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of every text, each an array of any integer dtype. This is the fastest way to encode."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids of all texts (sum of lengths,) int32, lengths (len(texts),) int32)."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def vocabulary(self) -> dict[str, int]:
        """{token as the vocabulary's file writes it: id}; empty where ids have no spelling."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes the files that `load_directory` reads, so that a checkpoint can hold its tokenizer."""
        ...


def load(config: TokenizerConfig, *, allow_special: bool = False) -> Tokenizer:
    """The tokenizer of a configuration.

    allow_special: a special token written in a text becomes its control id, as in most tokenizers.
    Raises UserError for files that are missing, broken, or not of one tokenizer.
    """
    config.check_given()
    kind = config.kind
    if kind == "NullTokenizer":
        return NullTokenizer(_given(config.tokenizer_vocab_size), config.null_tokenizer_eod_id)
    if kind == "ByteLevelTokenizer":
        return ByteLevelTokenizer(config.tokenizer_vocab_size or 512)
    if kind in ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"):
        return SentencePieceTokenizer(
            _given(config.tokenizer_model),
            config.vocab_extra_ids if kind == "SentencePieceTokenizer" else None,
            allow_special,
            config.tokenizer_special_tokens,
            keep_spaces=not config.tokenizer_sentencepiece_ignore_extra_whitespaces,
        )
    if kind == "GPT2BPETokenizer":
        tree, delimiters = gpt2_tree(_given(config.vocab_file), _given(config.merge_file))
    elif kind == "HuggingFaceTokenizer":
        path = Path(_given(config.tokenizer_model))
        tree, delimiters = hugging_face_tree(path)
        if not config.vocab_extra_ids and not config.tokenizer_special_tokens:
            return VocabularyTokenizer(tree, delimiters, allow_special, conventions(path))
    elif kind == "TikTokenizer":
        tree, delimiters = tiktoken_tree(
            _given(config.tokenizer_model),
            config.tiktoken_pattern,
            config.tiktoken_num_special_tokens,
            config.tokenizer_vocab_size,
            config.tokenizer_special_tokens,
        )
    else:
        tree, delimiters = bert_tree(_given(config.vocab_file), lowercase=kind == "BertWordPieceLowerCase")
    added = {token["content"] for token in tree["added_tokens"]}
    specials = [*(f"<extra_id_{i}>" for i in range(config.vocab_extra_ids)), *config.tokenizer_special_tokens]
    add_specials(tree, [special for special in specials if special not in added])
    return VocabularyTokenizer(tree, delimiters, allow_special)


# Llama 3's special tokens that have names, by their number behind the ranks; the others are reserved.
LLAMA3_SPECIALS = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
LLAMA31_SPECIALS = {**LLAMA3_SPECIALS, 4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 10: "<|python_tag|>"}
NUM_LLAMA3_SPECIALS = 256


def load_llama(path: Path, *, scaled: bool) -> Tokenizer:
    """The tokenizer in Meta's tokenizer.model: sentencepiece's of Llama 1 and 2, tiktoken's ranks of Llama 3.

    scaled: whether the model is a Llama 3.1 or later, which names more of its special tokens.
    """
    with paths.regular(path).open("rb") as file:
        line = file.readline(1024).strip()
    if not re.fullmatch(rb"[A-Za-z0-9+/]+=* 0", line):
        return load(TokenizerConfig(tokenizer_type="Llama2Tokenizer", tokenizer_model=str(path)))
    named = LLAMA31_SPECIALS if scaled else LLAMA3_SPECIALS
    reserved = (f"<|reserved_special_token_{i}|>" for i in itertools.count())
    specials = [named.get(number) or next(reserved) for number in range(NUM_LLAMA3_SPECIALS)]
    return VocabularyTokenizer(*llama3_tree(str(path), specials))


def _given(value: T | None) -> T:
    """A setting that READS demands, so that the configuration has refused its absence."""
    assert value is not None, "TokenizerConfig checks that the settings of its type are given"
    return value


Size = Annotated[int, Range(1, (1 << 31) - 1)]


class NullFacts(TypedDict):
    """tokenizer_config.json of a NullTokenizer."""

    vocab_size: Size
    eod: NotRequired[Annotated[int | None, Range(0)]]


class ByteLevelFacts(TypedDict):
    """tokenizer_config.json of a ByteLevelTokenizer."""

    vocab_size: Size


class SentencePieceFacts(TypedDict):
    """tokenizer_config.json of a SentencePieceTokenizer."""

    vocab_extra_ids: Annotated[int | None, Range(0, 1 << 20)]
    special_tokens: NotRequired[list[str]]
    keep_spaces: NotRequired[bool]


# What `save` writes, by `mt_tokenizer`.
SAVED_FACTS: dict[str, Any] = {
    "NullTokenizer": NullFacts,
    "ByteLevelTokenizer": ByteLevelFacts,
    "SentencePieceTokenizer": SentencePieceFacts,
}


def load_directory(path: str | Path) -> Tokenizer:
    """The tokenizer in a directory that `save`, `mt data train-tokenizer` or Hugging Face wrote."""
    path = Path(path)
    file = path / "tokenizer_config.json"
    facts: dict[str, Any] = check_value(read_json(file), dict[str, Any], file) if file.exists() else {}
    kind = facts.get("mt_tokenizer")
    if kind is not None:
        if not isinstance(kind, str) or kind not in SAVED_FACTS:
            raise UserError(
                f"{file}: mt_tokenizer = {shown(kind)}: must be one of {', '.join(SAVED_FACTS)}; fetch the"
                " file again"
            )
        check_value(facts, SAVED_FACTS[kind], file)
    if kind == "NullTokenizer":
        if (eod := facts.get("eod")) is not None and eod >= facts["vocab_size"]:
            raise UserError(
                f"{file}: eod = {eod} is not below vocab_size = {facts['vocab_size']}; fetch the file again"
            )
        return NullTokenizer(facts["vocab_size"], eod)
    if kind == "ByteLevelTokenizer":
        return ByteLevelTokenizer(facts["vocab_size"])
    if kind == "SentencePieceTokenizer":
        return SentencePieceTokenizer(
            path / "tokenizer.model",
            facts["vocab_extra_ids"],
            False,
            facts.get("special_tokens", ()),
            facts.get("keep_spaces", False),
        )
    return VocabularyTokenizer(*hugging_face_tree(path), conventions=conventions(path))


# Files beside a tokenizer.json that say how a model is used: its class, special tokens, side and length of
# padding, chat template, and the ids that begin and end texts.
CONVENTIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
CONVENTION_BYTES = 16 << 20  # tokenizer_config.json lists all special tokens: some have 1 MB
GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def conventions(path: Path) -> dict[str, bytes]:
    """The contents of CONVENTIONS beside a tokenizer.json, or in its directory.

    A link that leads out of the directory is left out, as in a copy of the directory. Without a
    generation_config.json, the ids that config.json says stand for it.
    """
    folder = path if path.is_dir() else path.parent
    found = {}
    for name in CONVENTIONS:
        with contextlib.suppress(UserError):
            if (file := paths.named(folder, name, str(folder))).is_file():
                found[name] = read_bytes(file, CONVENTION_BYTES)
    config = folder / "config.json"
    if "generation_config.json" not in found and config.is_file():
        with contextlib.suppress(UserError):
            settings = check_value(read_json(config), dict[str, Any], config)
            ids = {name: settings[name] for name in GENERATION_IDS if settings.get(name) is not None}
            found["generation_config.json"] = orjson.dumps(ids)
    return found


class VocabularyTokenizer:
    """A tokenizer of a tokenizer.json: byte-level BPE, WordPiece, Unigram, ...

    tree: of a tokenizer.json. conventions: the files beside it, which `save` writes again. A pickled
    tokenizer keeps the backend that was chosen when it was made.
    """

    def __init__(
        self,
        tree: Tree,
        delimiters: Delimiters,
        allow_special: bool = False,
        conventions: Mapping[str, bytes] | None = None,
    ):
        self.conventions = dict(conventions or {})
        ids = token_ids(tree)
        self.vocab_size = max(ids.values(), default=-1) + 1
        self.bos, self.eod = (None if token is None else ids.get(token) for token in delimiters)
        self._json = _dumped(tree)
        self._delimiters, self._allow_special = delimiters, allow_special
        encoding = {**tree, "post_processor": None} if allow_special else hide_specials(tree)
        self._encoding = _dumped(encoding)
        self.fingerprint = xxhash.xxh3_128(f"{delimiters.end}\n{self._json}".encode()).hexdigest()
        self.backend = self._choose_backend([token["content"] for token in tree["added_tokens"]])

    def __getstate__(self) -> dict[str, Any]:
        built_on_use = ("_decoder", "_reference_encoder", "_gigatoken_encoder")
        return {name: value for name, value in self.__dict__.items() if name not in built_on_use}

    def encode(self, text: str) -> list[int]:
        ids: list[int]
        if self.backend == "gigatoken":
            ids = self._gigatoken_encoder.encode(text).tolist()
        else:
            try:
                ids = self._reference_encoder.encode(text, add_special_tokens=False).ids
            except BaseException as error:
                raise _library_error(error) from None
        return ids

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        if self.backend == "gigatoken":
            # A call for each text is as fast as the batch call, which imports awkward (0.2 s) for its result.
            return list(map(self._gigatoken_encoder.encode, texts))
        encodings = self._encode_by_reference(texts)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _encode_by_reference(self, texts: Sequence[str]) -> list[Any]:
        """The encodings of the library `tokenizers`."""
        try:
            encodings: list[Any] = self._reference_encoder.encode_batch_fast(
                list(texts), add_special_tokens=False
            )
        except BaseException as error:
            raise _library_error(error) from None
        return encodings

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flat(self.encode_pieces(texts))

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._decoder.decode([int(i) for i in ids], skip_special_tokens=False)
        return text

    def vocabulary(self) -> dict[str, int]:
        return token_ids(orjson.loads(self._json))

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        with manifest.atomic_write(directory / "tokenizer.json", "w") as file:
            file.write(self._json)
        for name, content in self.conventions.items():
            with manifest.atomic_write(directory / name) as copy:
                copy.write(content)
        if "tokenizer_config.json" in self.conventions:
            return
        facts = {"tokenizer_class": "PreTrainedTokenizerFast"}
        roles = zip(("bos_token", "eos_token"), self._delimiters)
        facts |= {role: token for role, token in roles if token is not None}
        manifest.write_json(directory / "tokenizer_config.json", facts)

    @functools.cached_property
    def _decoder(self) -> Any:
        """The reference backend with all special tokens."""
        return _reference_backend(self._json)

    @functools.cached_property
    def _reference_encoder(self) -> Any:
        """The reference backend, which takes special tokens from a text only if they are allowed."""
        tokenizer = _reference_backend(self._encoding)
        tokenizer.encode_special_tokens = not self._allow_special
        return tokenizer

    @functools.cached_property
    def _gigatoken_encoder(self) -> Any:
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._encoding).backend

    def _choose_backend(self, added: Sequence[str]) -> str:
        """ "gigatoken" if it is installed, reads this tree and gives the reference's ids, else "tokenizers".

        Building the reference takes a seventh of a second, so an agreement is noted in ~/.cache/mt. Another
        version of either backend, or another vocabulary, is compared anew.
        """
        texts = [
            PROBE,
            *PROBE.split(" "),
            *PROBE.splitlines(),
            "",
            " ",
            *added,
            "".join(f"a{t} {t}{t}\n" for t in added[:64]),
        ]
        try:
            versions = [importlib.metadata.version(name) for name in ("gigatoken", "tokenizers")]
        except importlib.metadata.PackageNotFoundError:
            return "tokenizers"
        compared = xxhash.xxh3_128(self._encoding.encode())
        compared.update(repr((versions, self._allow_special, texts)).encode())
        name = compared.hexdigest()
        if _is_noted(name):
            return "gigatoken"
        encodings = self._encode_by_reference(texts)
        try:
            ids = [self._gigatoken_encoder.encode(text).tolist() for text in texts]
        except Exception:  # a model that gigatoken does not know; its Rust code raises bare exceptions
            return "tokenizers"
        if ids != [encoding.ids for encoding in encodings]:
            return "tokenizers"
        _note(name)
        return "gigatoken"


class SentencePieceTokenizer:
    """A tokenizer of a sentencepiece .model file, read by its own library.

    extra_ids: None for GPTSentencePieceTokenizer and Llama2Tokenizer, which have the pieces of the model
        alone and end documents with `</s>`. A number for Megatron-LM's SentencePieceTokenizer, which adds
        <CLS> <SEP> <EOD> <MASK>, the padding, begin and end pieces that the model lacks, this many
        <extra_id_i>, and `special_tokens`, and ends documents with <EOD>.
    keep_spaces: keep all spaces of a run, even if the model reduces them to one.
    """

    def __init__(
        self,
        path: str | Path,
        extra_ids: int | None,
        allow_special: bool = False,
        special_tokens: Sequence[str] = (),
        keep_spaces: bool = False,
    ):
        self._path = path
        self._extra_ids = extra_ids
        self._allow_special = allow_special
        self._added = list(special_tokens)
        self._model = read_bytes(path, JSON_BYTES)
        library = self._library
        self._keep_spaces = keep_spaces and library.encode_as_ids("x  y") == library.encode_as_ids("x y")
        self._mark_ids = len(library.encode_as_ids(f"x{MARK}")) - len(library.encode_as_ids("x"))
        own = [library.id_to_piece(i) for i in range(library.get_piece_size())]
        ids = {piece: i for i, piece in enumerate(own)}
        ends = [(library.pad_id(), "<PAD>"), (library.bos_id(), "<BOS>"), (library.eos_id(), "<EOS>")]
        pad, begin, end = (own[i] if i >= 0 else name for i, name in ends)
        if extra_ids is None:
            specials = [piece for i, piece in enumerate(own) if library.is_control(i)]
        else:
            specials = [
                "<CLS>",
                "<SEP>",
                "<EOD>",
                "<MASK>",
                pad,
                begin,
                end,
                *(f"<extra_id_{i}>" for i in range(extra_ids)),
                *special_tokens,
            ]
        for special in specials:
            ids.setdefault(special, len(ids))
        self._specials = {special: ids[special] for special in specials}
        self._ids = ids
        self.vocab_size = max(ids.values()) + 1
        self.bos, self.eod = ids.get(begin), ids.get(end if extra_ids is None else "<EOD>")
        options = (
            f"sentencepiece {extra_ids}"
            + (f" {self._added}" if self._added else "")
            + (" spaces" if self._keep_spaces else "")
        )
        self.fingerprint = xxhash.xxh3_128(self._model + options.encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        built_on_use = ("_library", "_special_pattern")
        return {name: value for name, value in self.__dict__.items() if name not in built_on_use}

    @functools.cached_property
    def _library(self) -> Any:
        """The sentencepiece.SentencePieceProcessor of the model."""
        try:
            import sentencepiece
        except ModuleNotFoundError:
            raise UserError(
                f"{self._path}: is read by the package sentencepiece; install it with: pip install"
                " sentencepiece"
            ) from None
        library = sentencepiece.SentencePieceProcessor()
        try:
            library.LoadFromSerializedProto(self._model)
        except RuntimeError:
            raise UserError(
                f"{self._path}: is not a model that sentencepiece reads; check the path, or fetch the file"
                " again"
            ) from None
        return library

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """Splits a text at its special tokens and keeps them; of two that begin alike the first is taken."""
        return re.compile("(" + "|".join(map(re.escape, self._specials)) + ")")

    def encode(self, text: str) -> list[int]:
        if not self._allow_special or not self._specials:
            return self._encode(text)
        return list(
            itertools.chain.from_iterable(
                [self._specials[part]] if i % 2 else self._encode(part)
                for i, part in enumerate(self._special_pattern.split(text))
            )
        )

    def _encode(self, text: str) -> list[int]:
        if not self._keep_spaces:
            ids: list[int] = self._library.encode_as_ids(text)
            return ids
        # As in Megatron-LM: MARK stands between the spaces of a run, and the ids of MARK are cut off.
        parts = EXTRA_SPACE.sub(f" {MARK} ", text).rstrip().split(MARK)
        return [
            i for part in parts if part for i in self._library.encode_as_ids(part + MARK)[: -self._mark_ids]
        ]

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.int32) for text in texts]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flat(self.encode_pieces(texts))

    def decode(self, ids: Sequence[int]) -> str:
        names = {i: special for special, i in self._specials.items()}
        runs = itertools.groupby((int(i) for i in ids), key=names.get)
        return "".join(
            name * len(list(run)) if name is not None else self._library.decode_ids(list(run))
            for name, run in runs
        )

    def vocabulary(self) -> dict[str, int]:
        return self._ids

    def save(self, directory: str | Path) -> None:
        with manifest.atomic_write(Path(directory) / "tokenizer.model") as file:
            file.write(self._model)
        facts = {
            "mt_tokenizer": "SentencePieceTokenizer",
            "vocab_extra_ids": self._extra_ids,
            "special_tokens": self._added,
            "keep_spaces": self._keep_spaces,
        }
        manifest.write_json(Path(directory) / "tokenizer_config.json", facts)


class NullTokenizer:
    """Reads text that is ids already: "1 2 3" -> [1, 2, 3].

    `eod` ends documents; by default the last id does, as in Megatron-LM.
    """

    bos: int | None = None
    eod: int | None

    def __init__(self, vocab_size: int, eod: int | None = None):
        self.vocab_size = vocab_size
        self.eod = vocab_size - 1 if eod is None else eod
        self.fingerprint = f"null-{vocab_size}" + ("" if eod in (None, vocab_size - 1) else f"-{eod}")

    def encode(self, text: str) -> list[int]:
        try:
            ids = [int(word) for word in text.split()]
        except ValueError as error:
            raise UserError(
                f"NullTokenizer reads numbers only ({error}); give it ids, or choose another --tokenizer-type"
            ) from None
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise UserError(
                f"NullTokenizer: id {wrong} is outside [0, {self.vocab_size}); raise --tokenizer-vocab-size"
                " or mend the text"
            )
        return ids

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), np.int32) for text in texts]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flat(self.encode_pieces(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def vocabulary(self) -> dict[str, int]:
        return {}

    def save(self, directory: str | Path) -> None:
        manifest.write_json(
            Path(directory) / "tokenizer_config.json",
            {"mt_tokenizer": "NullTokenizer", "vocab_size": self.vocab_size, "eod": self.eod},
        )


class ByteLevelTokenizer:
    """Takes the UTF-8 bytes of a text as ids. As in Megatron-LM, byte 0 also ends documents, byte 1 pads."""

    bos: int | None = None
    eod: int | None = 0

    def __init__(self, vocab_size: int = 512):
        self.vocab_size = vocab_size
        self.fingerprint = f"byte-level-{vocab_size}"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flat(self.encode_pieces(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids if 1 < i < 256).decode(errors="replace")

    def vocabulary(self) -> dict[str, int]:
        return {}

    def save(self, directory: str | Path) -> None:
        manifest.write_json(
            Path(directory) / "tokenizer_config.json",
            {"mt_tokenizer": "ByteLevelTokenizer", "vocab_size": self.vocab_size},
        )


def _flat(pieces: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The result of `encode_batch` from that of `encode_pieces`."""
    flat = np.concatenate(pieces, dtype=np.int32, casting="unsafe") if pieces else np.empty(0, np.int32)
    return flat, np.fromiter(map(len, pieces), np.int32, len(pieces))


def _is_noted(name: str) -> bool:
    """Whether the backends are known to agree on what `name` is the digest of."""
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that may not be read
        return (cache_folder() / "backends" / name).exists()
    return False


def _note(name: str) -> None:
    with contextlib.suppress(OSError, RuntimeError):  # not written: compared again next time
        (cache_folder() / "backends").mkdir(parents=True, exist_ok=True)
        (cache_folder() / "backends" / name).touch()


def _reference_backend(text: str) -> Any:
    """The tokenizers.Tokenizer of a tokenizer.json's text; raises UserError if it cannot be built."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except BaseException as error:
        raise _library_error(error) from None


def _library_error(error: BaseException) -> BaseException:
    """A UserError for an error of the library `tokenizers`; any other error itself.

    Its Rust code raises bare Exception, and where it panics a PanicException, which is none.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error
    version = importlib.metadata.version("tokenizers")
    said = " ".join(str(error).split())[:300]
    return UserError(
        f"the tokenizer cannot be built from its files ({said}); give files that `tokenizers` {version} reads"
    )


def _dumped(tree: Tree) -> str:
    """The text of a tree; raises UserError for what JSON cannot hold."""
    try:
        return orjson.dumps(tree).decode()
    except TypeError as error:  # numbers of more than 64 bits, lone surrogates
        raise UserError(
            f"the tokenizer's files hold a value that is not JSON ({error}); fetch them again"
        ) from None
