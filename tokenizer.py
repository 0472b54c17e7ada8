"""text <-> ids: every tokenizer type, the fastest backend that gives the same ids.

In: a `TokenizerConfig`, or a directory that `save` (or Hugging Face) wrote. Out: a `Tokenizer`.

Every vocabulary but the two trivial ones is kept as the tree of a Hugging Face `tokenizer.json`. Text is encoded to raw
pieces: no [CLS], [SEP] or BOS is put around it, and nothing in a text is ever a control id: `<|endoftext|>` written in
a document is encoded like any other characters. Two backends read the tree, `gigatoken` (some fifty times faster) and
`tokenizers` (the reference); gigatoken is used only where it gives the same ids on a probe text that is made to tell
them apart, so that ids never depend on what is installed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import orjson
import xxhash

from . import documents, manifest
from .config import UserError, check, option
from .executor import progress

# What ends a document in a tokenizer.json that does not say so.
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<EOD>", "<EOT>", "[SEP]")
# Where backends have disagreed: contractions, marks, emoji, spaces of every kind and length, digits of every script,
# control and unassigned characters, line ends.
PROBE = (
    "It's THEY'RE we'll I'M don't 'S ''s x'd a'B naïve nai\u0308ve ſt\u0323\u0307 Ǆ ǅ ß İ ı Ω\n\n\n  \n \t\t x\r\ny\rz   "
    + " " * 70 + "a" + " " * 8 + "\n" + "\u00a0\u2003\u3000\u200b\u2028\u2029\u0085\x1c\x1f\x0b\x0c \ufeff "
    + "0 12 123456789012345 ٣٤٥ ⅷ ² ½ ४ 1.5e-3 3,000 $9.99 100% v2.0_rc1 snake_case CamelCase __x__ "
    + "中文字符 日本語テキスト 한국어 עברית العربية हिन्दी ไทย 🙂🙃 👩‍👩‍👧‍👦 🇩🇪 ❤️ \U0001f9d1\U0001f3fd‍🚀 "
    + "\x00\x01\x07\x08\x1b\x7f\x80\x9f \ufdd0 \uffff \U000e0001 \U0010ffff \ue000 ­ "
    + "<b>html</b> &amp; http://a.b/c?d=e#f `code` {\"k\": [1, 2]} // /* */ --- *** ... !!! ??? ——— “q” ‘r’ …  end "
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer, and its files."""

    tokenizer_type: Literal[
        "GPT2BPETokenizer", "HuggingFaceTokenizer", "BertWordPieceLowerCase", "BertWordPieceCase", "NullTokenizer", "ByteLevelTokenizer"
    ] | None = option(None, "kind of tokenizer (default: GPT2BPETokenizer where --merge-file is given, else HuggingFaceTokenizer)")
    vocab_file: str | None = option(None, "vocab.json of GPT2BPETokenizer, vocab.txt of BertWordPiece", role="input")
    merge_file: str | None = option(None, "merges.txt of GPT2BPETokenizer", role="input")
    tokenizer_model: str | None = option(None, "HuggingFaceTokenizer: a tokenizer.json or the directory that holds it", role="input")
    vocab_extra_ids: int = option(0, "number of sentinels <extra_id_0>, <extra_id_1>, ... to add to the vocabulary (T5 uses 100)")
    tokenizer_vocab_size: int | None = option(None, "NullTokenizer: number of ids, the last of which ends documents; ByteLevelTokenizer: default 512")

    def __post_init__(self):
        kind = self.kind
        needs = {
            "GPT2BPETokenizer": ("vocab_file", "merge_file"),
            "HuggingFaceTokenizer": ("tokenizer_model",),
            "BertWordPieceLowerCase": ("vocab_file",),
            "BertWordPieceCase": ("vocab_file",),
            "NullTokenizer": ("tokenizer_vocab_size",),
            "ByteLevelTokenizer": (),
        }[kind] if kind else ()
        size = self.tokenizer_vocab_size
        takes_size, takes_extra = kind in ("NullTokenizer", "ByteLevelTokenizer"), kind not in ("NullTokenizer", "ByteLevelTokenizer")
        check(
            *((getattr(self, n) is not None, f"tokenizer_type = {kind} needs --{n.replace('_', '-')}") for n in needs),
            *(
                (getattr(self, n) is None or n in needs, f"tokenizer_type = {kind} does not read {n} = {getattr(self, n)}; leave it out")
                for n in ("vocab_file", "merge_file", "tokenizer_model") if kind
            ),
            (kind is None or size is None or takes_size, f"tokenizer_type = {kind} does not read tokenizer_vocab_size; its files decide"),
            (size is None or size >= (258 if kind == "ByteLevelTokenizer" else 2), f"tokenizer_vocab_size = {size} is too small for {kind}"),
            (self.vocab_extra_ids >= 0, f"vocab_extra_ids = {self.vocab_extra_ids} must not be negative"),
            (self.vocab_extra_ids == 0 or takes_extra, f"tokenizer_type = {kind} does not read vocab_extra_ids; leave it out"),
        )

    @property
    def kind(self) -> str | None:
        """The type, told from the files where it is not given; None where nothing tells it."""
        if self.tokenizer_type is not None:
            return self.tokenizer_type
        return "GPT2BPETokenizer" if self.merge_file else "HuggingFaceTokenizer" if self.tokenizer_model else None


class Tokenizer(Protocol):
    """What every room sees of a tokenizer."""

    vocab_size: int  # every id is below it
    eod: int | None  # the id that ends a document; None where the vocabulary has none
    fingerprint: str  # hex digest of everything that decides ids

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids (sum of lengths,) int32, lengths (len(texts),) int32)"""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, directory: str | Path) -> None:
        """Writes what `load_directory` reads, so that a checkpoint can carry its tokenizer."""
        ...


def load(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a configuration; raises UserError for files that are absent, broken or do not belong together."""
    kind = config.kind
    if kind is None:
        raise UserError("no tokenizer is given; pass --vocab-file and --merge-file, --tokenizer-model, or --tokenizer-type")
    if kind == "NullTokenizer":
        return NullTokenizer(config.tokenizer_vocab_size)
    if kind == "ByteLevelTokenizer":
        return ByteLevelTokenizer(config.tokenizer_vocab_size or 512)
    if kind == "GPT2BPETokenizer":
        tree, end = _gpt2_tree(config.vocab_file, config.merge_file)
    elif kind == "HuggingFaceTokenizer":
        tree, end = _hugging_face_tree(Path(config.tokenizer_model))
    else:
        tree, end = _bert_tree(config.vocab_file, lowercase=kind == "BertWordPieceLowerCase")
    _add_specials(tree, [f"<extra_id_{i}>" for i in range(config.vocab_extra_ids)])
    return VocabularyTokenizer(tree, end)


def load_directory(path: str | Path) -> Tokenizer:
    """The tokenizer in a directory that `save`, `mt data train-tokenizer` or Hugging Face wrote."""
    path = Path(path)
    facts = _json_file(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
    trivial = {"NullTokenizer": NullTokenizer, "ByteLevelTokenizer": ByteLevelTokenizer}.get(facts.get("mt_tokenizer"))
    if trivial:
        return trivial(facts["vocab_size"])
    tree, end = _hugging_face_tree(path)
    return VocabularyTokenizer(tree, end)


class VocabularyTokenizer:
    """A tokenizer.json: byte-level BPE, WordPiece, Unigram, ...

    tree: a tokenizer.json. end: the token that ends a document. Pickled, it keeps the backend that was chosen here.
    """

    def __init__(self, tree: dict, end: str | None):
        ids = _ids(tree)
        self.vocab_size = max(ids.values(), default=-1) + 1
        self.eod = ids.get(end) if end is not None else None
        self._json, self._end = orjson.dumps(tree).decode(), end
        self._blind_json = orjson.dumps(_blind(tree)).decode()
        self.fingerprint = xxhash.xxh3_128(f"{end}\n{self._json}".encode()).hexdigest()
        self.backend = self._choose([t["content"] for t in tree["added_tokens"]])

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_whole", "_plain", "_fast")}  # built where they are used

    def encode(self, text: str) -> list[int]:
        if self.backend == "gigatoken":
            return self._fast.encode(text).tolist()
        return self._plain.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        if self.backend == "gigatoken":
            # One call a document: as fast as its batch call, which would import awkward (0.2 s) for its result.
            pieces = list(map(self._fast.encode, texts))
            flat = np.concatenate(pieces).view(np.int32)
        else:
            pieces = [e.ids for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]
            flat = np.fromiter(itertools.chain.from_iterable(pieces), np.int32)
        return flat, np.fromiter(map(len, pieces), np.int32, len(pieces))

    def decode(self, ids: Sequence[int]) -> str:
        return self._whole.decode([int(i) for i in ids], skip_special_tokens=False)

    def save(self, directory: str | Path) -> None:
        directory = Path(directory)
        with manifest.atomic_write(directory / "tokenizer.json", "w") as file:
            file.write(self._json)
        facts = {"tokenizer_class": "PreTrainedTokenizerFast", **({"eos_token": self._end} if self._end is not None else {})}
        manifest.write_json(directory / "tokenizer_config.json", facts)

    @functools.cached_property
    def _whole(self):
        """The reference, specials and all: for decoding."""
        return _reference(self._json)

    @functools.cached_property
    def _plain(self):
        """The reference, blind to special tokens in a text."""
        tokenizer = _reference(self._blind_json)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @functools.cached_property
    def _fast(self):
        import gigatoken

        return gigatoken.Tokenizer.from_json(self._blind_json).backend

    def _choose(self, added: Sequence[str]) -> str:
        """ "gigatoken" where it is installed, reads this tree and agrees with the reference, else "tokenizers"."""
        texts = [PROBE, *PROBE.split(" "), *PROBE.splitlines(), "", " ", *added, "".join(f"a{t} {t}{t}\n" for t in added[:64])]
        wanted = [e.ids for e in self._plain.encode_batch_fast(texts, add_special_tokens=False)]
        try:
            got = [self._fast.encode(text).tolist() for text in texts]
        except Exception:  # not installed, or a model that it does not know: it raises what its Rust code raises
            return "tokenizers"
        return "gigatoken" if got == wanted else "tokenizers"


class NullTokenizer:
    """Text that already is ids: "1 2 3" -> [1, 2, 3]. The last id ends documents (Megatron-LM's convention)."""

    def __init__(self, vocab_size: int):
        self.vocab_size, self.eod = vocab_size, vocab_size - 1
        self.fingerprint = f"null-{vocab_size}"

    def encode(self, text: str) -> list[int]:
        try:
            ids = [int(word) for word in text.split()]
        except ValueError as error:
            raise UserError(f"NullTokenizer reads numbers only ({error}); give it ids, or choose another --tokenizer-type") from None
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise UserError(f"NullTokenizer: id {wrong} is outside [0, {self.vocab_size}); raise --tokenizer-vocab-size or mend the text")
        return ids

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        pieces = [self.encode(text) for text in texts]
        return np.fromiter(itertools.chain.from_iterable(pieces), np.int32), np.fromiter(map(len, pieces), np.int32, len(pieces))

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def save(self, directory: str | Path) -> None:
        manifest.write_json(Path(directory) / "tokenizer_config.json", {"mt_tokenizer": "NullTokenizer", "vocab_size": self.vocab_size})


class ByteLevelTokenizer:
    """The bytes of the UTF-8 text are the ids; byte 0 also ends documents and byte 1 pads (Megatron-LM's convention)."""

    def __init__(self, vocab_size: int = 512):
        self.vocab_size, self.eod = vocab_size, 0
        self.fingerprint = f"byte-level-{vocab_size}"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        pieces = [text.encode() for text in texts]
        flat = np.frombuffer(b"".join(pieces), np.uint8).astype(np.int32)
        return flat, np.fromiter(map(len, pieces), np.int32, len(pieces))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(int(i) for i in ids if 1 < i < 256).decode(errors="replace")

    def save(self, directory: str | Path) -> None:
        manifest.write_json(Path(directory) / "tokenizer_config.json", {"mt_tokenizer": "ByteLevelTokenizer", "vocab_size": self.vocab_size})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """The settings of `mt data train-tokenizer`."""

    input: tuple[str, ...] = option(help="files, folders or globs: .jsonl(.gz .zst), .parquet, .txt", role="input")
    output: str = option(help="directory for the tokenizer", role="output")
    vocab_size: int = option(8192, "number of ids to aim for, the 256 bytes and the special token included")
    text_key: str = option("text", "the record's key that holds the text")
    sample_bytes: int = option(1_000_000_000, "learn from about this many bytes of input, spread evenly; memory grows with it")
    on_error: Literal["fail", "skip"] = option("fail", "a record that cannot be read: stop, or set it aside in rejects.jsonl", role="runtime")
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        check(
            (self.vocab_size > 257, f"vocab_size = {self.vocab_size} must be more than the 256 bytes and the special token"),
            (self.sample_bytes >= 1, f"sample_bytes = {self.sample_bytes} must be at least 1"),
        )


def train_tokenizer(config: TrainTokenizerConfig) -> dict:
    """Trains a byte-level BPE like GPT-2's on documents; `<|endoftext|>`, id 0, ends a document.

    Output directory: tokenizer.json and tokenizer_config.json (for --tokenizer-model DIR, and for transformers),
    vocab.json and merges.txt (for --vocab-file and --merge-file), the same ids either way.
    """
    shards = documents.plan(config.input, key=config.text_key, on_error=config.on_error)
    run = manifest.begin("data train-tokenizer", config, dict.fromkeys(s.path for s in shards))
    if run.finished:
        return run.manifest
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Reference

    learner = Reference(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size, min_frequency=2, special_tokens=[AddedToken(END_NAMES[0], special=True, normalized=False)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    counts = {"documents": 0, "text_bytes": 0, "rejected": 0}
    rejects: list[documents.Reject] = []
    try:
        learner.train_from_iterator(_sample(config, shards, rejects, counts), trainer)
        if not counts["text_bytes"]:
            raise UserError(f"{', '.join(config.input)}: holds no text to learn from; check the input")
    except UserError:
        run.release()  # nothing is written yet, and the remedy changes the input or a setting
        raise
    counts["rejected"] = len(rejects)
    counts["vocab_size"] = learner.get_vocab_size()
    files = _write_trained(run.output, json.loads(learner.to_str()))
    if rejects:
        path = run.output / "rejects.jsonl"
        with manifest.atomic_write(path, "w") as file:
            file.writelines(json.dumps(r.as_json(), ensure_ascii=False) + "\n" for r in rejects)
        files.append(path)
    return run.finish([{**manifest.record(f, run.output), "documents": False} for f in files], counts)


def _sample(config: TrainTokenizerConfig, shards, rejects: list, counts: dict) -> Iterator[str]:
    """Every document of a small input; of a large one those whose text hashes low: the same ones on every run."""
    total = sum(s.bytes for s in shards)
    limit = (1 << 64) * min(1.0, config.sample_bytes / max(total, 1))
    with progress("train-tokenizer: reading", total, "B") as advance:
        for shard in shards:
            for document in documents.read(shard, rejects.append):
                raw = document.text.encode()
                if xxhash.xxh3_64_intdigest(raw) < limit:
                    counts["documents"] += 1
                    counts["text_bytes"] += len(raw)
                    yield document.text
            advance(shard.bytes)


def _write_trained(folder: Path, tree: dict) -> list[Path]:
    model = tree["model"]
    contents = {
        "tokenizer.json": json.dumps(tree, ensure_ascii=False),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_NAMES[0]}),
        "vocab.json": json.dumps(dict(sorted(model["vocab"].items(), key=lambda item: item[1])), ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]),
    }
    for name, text in contents.items():
        with manifest.atomic_write(folder / name, "w") as file:
            file.write(text)
    return [folder / name for name in contents]


# --- trees


def _gpt2_tree(vocab_file: str, merge_file: str) -> tuple[dict, str | None]:
    vocab = _json_file(Path(vocab_file))
    if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
        raise UserError(f"{vocab_file}: must be a JSON object of token: id; give GPT-2's vocab.json")
    merges = []
    for number, line in enumerate(_text_file(merge_file).split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2:
            raise UserError(f"{merge_file}, line {number}: {line!r} is not two tokens and one space between; give GPT-2's merges.txt")
        if pair[0] + pair[1] not in vocab:
            raise _no_result(pair, f"{merge_file}, line {number}", vocab_file)
        merges.append(pair)
    end = END_NAMES[0] if END_NAMES[0] in vocab else None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges,
    }
    tree = _tree(None, byte_level, byte_level, model)
    _add_specials(tree, [end] if end else [])
    return tree, end


def _bert_tree(vocab_file: str, lowercase: bool) -> tuple[dict, str]:
    words = _text_file(vocab_file).splitlines()
    vocab = {word.strip(): i for i, word in enumerate(words)}
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    missing = [s for s in specials if s not in vocab]
    if missing:
        raise UserError(f"{vocab_file}: has no {' '.join(missing)}; give BERT's vocab.txt, one token a line")
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": lowercase}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab}
    tree = _tree(normalizer, {"type": "BertPreTokenizer"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}, model)
    _add_specials(tree, specials)
    return tree, "[SEP]"


def _tree(normalizer, pre_tokenizer, decoder, model) -> dict:
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model,
    }


def _hugging_face_tree(path: Path) -> tuple[dict, str | None]:
    """The tree of a tokenizer.json (or of its directory), and the token that ends documents by the files beside it."""
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    if not file.exists() and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _gpt2_tree(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tree = _json_file(file)
    if not isinstance(tree, dict) or "model" not in tree:
        raise UserError(f"{file}: is not a tokenizer.json (it has no `model`); give the file that Hugging Face's `tokenizers` writes")
    model = tree["model"]
    if isinstance(model.get("vocab"), dict):
        unmade = next((pair for pair in model.get("merges") or () if _merged(pair) not in model["vocab"]), None)
        if unmade is not None:
            raise _no_result(unmade, f"{file}: model.merges", "model.vocab")
    # Both would cut or fill every document; a training corpus wants neither.
    tree["truncation"] = tree["padding"] = None
    tree["added_tokens"] = tree.get("added_tokens") or []
    ids = _ids(tree)
    named = [
        value["content"] if isinstance(value, dict) else value
        for key in ("eos_token", "sep_token")
        for name in ("tokenizer_config.json", "special_tokens_map.json")
        if (folder / name).exists() and (value := _json_file(folder / name).get(key)) is not None
    ]
    end = next((t for t in [*named, *END_NAMES] if t in ids), None)
    for token in tree["added_tokens"]:
        token["special"] = token.get("special", False) or token["content"] == end
    if end is not None and not any(t["content"] == end for t in tree["added_tokens"]):
        _add_specials(tree, [end])
    return tree, end


def _no_result(pair, place: str, vocab_name: str) -> UserError:
    shown = pair if isinstance(pair, str) else " ".join(pair)
    return UserError(f"{place}: the merge {shown!r} makes {_merged(pair)!r}, which {vocab_name} does not have; give the two files of one tokenizer")


def _merged(pair) -> str:
    """A tokenizer.json writes a merge as "a b" or, since 2024, as ["a", "b"]."""
    return pair.replace(" ", "") if isinstance(pair, str) else pair[0] + pair[1]


def _ids(tree: dict) -> dict[str, int]:
    """token -> id, added tokens included."""
    vocab = tree["model"].get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    return ids | {t["content"]: t["id"] for t in tree.get("added_tokens") or []}


def _add_specials(tree: dict, contents: list[str]) -> None:
    ids = _ids(tree)
    fresh = itertools.count(max(ids.values(), default=-1) + 1)
    for content in contents:
        tree["added_tokens"].append({
            "id": ids[content] if content in ids else next(fresh), "content": content, "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False, "special": True,
        })


def _blind(tree: dict) -> dict:
    """A tree whose special tokens bear names that no text has, so that nothing a user wrote becomes a control id.

    They keep their places, since the ids of other added tokens depend on them. The names are made of noncharacters
    (U+FDD0), which Unicode keeps out of texts.
    """
    model, added = dict(tree["model"]), tree["added_tokens"]
    specials = {t["content"] for t in added if t.get("special")} - {model.get("unk_token")}
    specials -= {made for pair in model.get("merges") or () if (made := _merged(pair)) in specials}
    hidden = {content: f"\ufdd0mt special {i}\ufdd0" for i, content in enumerate(sorted(specials))}
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in model["vocab"].items()}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    added = [{**t, "content": hidden.get(t["content"], t["content"])} for t in added]
    # The post-processor only adds special tokens and offsets.
    return {**tree, "model": model, "added_tokens": added, "post_processor": None}


def _reference(text: str):
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # its Rust code raises bare Exception
        raise UserError(f"the tokenizer cannot be built from its files ({error}); give files that `tokenizers` {tokenizers.__version__} reads") from None


def _json_file(path: Path):
    try:
        return json.loads(_text_file(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); check the path, or fetch the file again") from None


def _text_file(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; fetch the file again") from None
