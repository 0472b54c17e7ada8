"""Reads vocabulary files of all kinds into the tree of a Hugging Face `tokenizer.json`.

The kinds are GPT-2's vocab.json and merges.txt, BERT's vocab.txt, a tokenizer.json, and tiktoken's ranks in
Megatron-LM's format (a JSON list of `{"rank", "token_bytes", "token_str"}`). The function for each kind
returns `(tree, delimiters)`: the tree as the library `tokenizers` reads it, and the tokens that begin and end
a document.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict

from ..core.config import UserError, shown
from ..core.parsing import Range, check_value, read_json, read_text

Tree = dict[str, Any]  # the JSON object in a tokenizer.json
Id = Annotated[int, Range(0, (1 << 31) - 1)]
# The greatest id of a vocabulary may be this many times its number of tokens, and this much more.
MOST_IDS_PER_TOKEN, MOST_GAP = 4, 1 << 20
MOST_GROWTH = 1000  # of a text by the replacements of a tokenizer.json; those known have 10 or less
MAY_BE_EMPTY = re.compile(r"[*?|^${]|\\[bBAzZGK]")  # in a regex that can match no character
Merge = str | list[str]  # "a b" in a tokenizer.json, since 2024 also ["a", "b"]
# The token that ends a document in a tokenizer.json that does not name one: the first of these that it has.
END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<EOD>", "<EOT>", "[SEP]")
# Megatron-LM's special tokens for tiktoken, ids 0 to 6; <SPECIAL_7>, <SPECIAL_8>, ... follow.
TIKTOKEN_SPECIALS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
TIKTOKEN_VOCAB_SIZE = 131072
# Characters of a token up to which all its splits in two are tried; that takes quadratic time in its length.
LONG_TOKEN = 256
TIKTOKEN_PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class Delimiters(NamedTuple):
    """The tokens that begin and end a document; None if the vocabulary has none."""

    begin: str | None
    end: str | None


def gpt2_tree(vocab_file: str, merge_file: str) -> tuple[Tree, Delimiters]:
    """GPT-2's byte-level BPE. `<|endoftext|>` both begins and ends a document, as in transformers."""
    vocab = read_json(vocab_file)
    if not isinstance(vocab, dict):
        raise UserError(f"{vocab_file}: must be a JSON object of token: id; give GPT-2's vocab.json")
    check_value(vocab, dict[str, Id], vocab_file, "give GPT-2's vocab.json")
    check_ids(vocab, vocab_file)
    lines = read_text(merge_file).replace("\r\n", "\n").split("\n")
    skip = 1 if lines[0].startswith("#version") else 0
    merges = [line.split(" ") for line in lines[skip:] if line and not line.isspace()]
    if not all(len(pair) == 2 and pair[0] + pair[1] in vocab for pair in merges):
        raise _wrong_merge(lines, skip, merge_file, vocab, vocab_file)
    end = END_NAMES[0] if END_NAMES[0] in vocab else None
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tree = _tree(None, byte_level, byte_level, _bpe(vocab, merges, ignore_merges=False))
    add_specials(tree, [end] if end else [])
    return tree, Delimiters(end, end)


def _wrong_merge(
    lines: list[str], skip: int, merge_file: str, vocab: dict[str, int], vocab_file: str
) -> UserError:
    """The error for the first line of merges.txt that does not fit its vocabulary."""
    for number, line in enumerate(lines[skip:], 1 + skip):
        pair = line.split(" ")
        if line.strip() and len(pair) != 2:
            return UserError(
                f"{merge_file}, line {number}: {line!r} is not two tokens and one space between; give GPT-2's"
                " merges.txt"
            )
        if line.strip() and pair[0] + pair[1] not in vocab:
            return _unknown_result(pair, f"{merge_file}, line {number}", vocab_file)
    raise AssertionError("it is called for a file that has a wrong line")


# Unicode's White_Space, which the package tokenizers strips from the end of a line. str.rstrip() strips more.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def bert_tree(vocab_file: str, lowercase: bool) -> tuple[Tree, Delimiters]:
    """BERT's WordPiece. [CLS] begins a document and [SEP] ends it."""
    lines = read_text(vocab_file).removesuffix("\n").split("\n")  # an id is the number of a line
    vocab = {line.rstrip(WHITE_SPACE): i for i, line in enumerate(lines)}
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    missing = [s for s in specials if s not in vocab]
    if missing:
        raise UserError(f"{vocab_file}: has no {' '.join(missing)}; give BERT's vocab.txt, one token a line")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": lowercase,
    }
    model = {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    tree = _tree(
        normalizer,
        {"type": "BertPreTokenizer"},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        model,
    )
    add_specials(tree, specials)
    return tree, Delimiters("[CLS]", "[SEP]")


def _tree(normalizer: Tree | None, pre_tokenizer: Tree, decoder: Tree, model: Tree) -> Tree:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def hugging_face_tree(path: Path) -> tuple[Tree, Delimiters]:
    """The tree of a tokenizer.json or of its directory; the files beside it name the delimiters."""
    folder, file = (path, path / "tokenizer.json") if path.is_dir() else (path.parent, path)
    if not file.exists() and (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return gpt2_tree(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tree = read_tokenizer_json(file)
    model = tree["model"]
    if isinstance(model.get("vocab"), dict):
        merges = model.get("merges") or ()
        # read_tokenizer_json has checked that all are texts or all are pairs
        results = map("".join, merges) if merges and isinstance(merges[0], list) else map(_merged, merges)
        if not all(map(model["vocab"].__contains__, results)):
            wrong = next(pair for pair in merges if _merged(pair) not in model["vocab"])
            raise _unknown_result(wrong, f"{file}: model.merges", "model.vocab")
    # A training corpus needs whole documents, neither truncated nor padded.
    tree["truncation"] = tree["padding"] = None
    tree["added_tokens"] = tree.get("added_tokens") or []
    ids = token_ids(tree)
    begin = next((t for t in _named(folder, "bos_token", "cls_token") if t in ids), None)
    end = next((t for t in [*_named(folder, "eos_token", "sep_token"), *END_NAMES] if t in ids), None)
    for token in tree["added_tokens"]:
        token["special"] = token.get("special", False) or token["content"] in (begin, end)
    added = {t["content"] for t in tree["added_tokens"]}
    add_specials(tree, [t for t in dict.fromkeys((begin, end)) if t is not None and t not in added])
    return tree, Delimiters(begin, end)


class AddedToken(TypedDict):
    """A token of a tokenizer.json beside its vocabulary."""

    id: Id
    content: str
    single_word: NotRequired[bool]
    lstrip: NotRequired[bool]
    rstrip: NotRequired[bool]
    normalized: NotRequired[bool]
    special: NotRequired[bool]


class TokenizerModel(TypedDict, total=False):
    """`model` of a tokenizer.json, as far as mt reads it."""

    type: str | None
    vocab: dict[str, Id] | list[tuple[str, float]] | None
    merges: list[tuple[str, str]] | list[str] | None
    unk_token: str | None


class TokenizerJson(TypedDict):
    """A tokenizer.json, as far as mt reads it; the library `tokenizers` checks the rest."""

    model: TokenizerModel
    added_tokens: NotRequired[list[AddedToken] | None]


def read_tokenizer_json(file: Path) -> Tree:
    """The tree of a tokenizer.json; raises UserError for what the library would crash on, or mt misread."""
    tree = read_json(file)
    if not isinstance(tree, dict) or "model" not in tree:
        raise UserError(
            f"{file}: is not a tokenizer.json (it has no `model`); give the file that Hugging Face's"
            " `tokenizers` writes"
        )
    check_value(tree, TokenizerJson, file)
    check_ids(token_ids(tree), file)
    for name in ("normalizer", "decoder"):
        if (growth := _growth(tree.get(name))) > MOST_GROWTH:
            raise UserError(
                f"{file}: {name} makes a text up to {growth:,.0f} times as long, more than {MOST_GROWTH:,};"
                " fetch the file again"
            )
    return tree


def _growth(step: Any) -> float:
    """How many times as long a normalizer or decoder of a tokenizer.json makes a text, at most.

    Forty replacements of one letter by two need all the memory for one word. What is prepended counts as if
    the text had one character.
    """
    if not isinstance(step, dict):
        return 1.0
    growth = 1.0
    for name in ("normalizers", "decoders"):
        for inner in step[name] if isinstance(step.get(name), list) else ():
            growth = min(growth * _growth(inner), 1e300)
    if step.get("type") == "Prepend" and isinstance(step.get("prepend"), str):
        growth *= 1 + len(step["prepend"])
    pattern, content = step.get("pattern"), step.get("content")
    if step.get("type") == "Replace" and isinstance(pattern, dict) and isinstance(content, str):
        text, regex = pattern.get("String"), pattern.get("Regex")
        if isinstance(text, str) and text:
            growth *= max(1.0, len(content) / len(text))
        else:  # a regex that may match between two characters only adds
            adds = content and (not isinstance(regex, str) or not regex or MAY_BE_EMPTY.search(regex))
            growth *= 1 + len(content) if adds else max(1, len(content))
    return growth


def check_ids(ids: Mapping[str, int], place: str | Path) -> None:
    """Raises UserError for ids with wide gaps: the tables by id of libraries would need all the memory."""
    most = max(ids.values(), default=-1)
    if most >= MOST_IDS_PER_TOKEN * len(ids) + MOST_GAP:
        token = next(token for token, i in ids.items() if i == most)
        raise UserError(
            f"{place}: gives the token {shown(token)} the id {most:,}, and has only {len(ids):,} tokens;"
            " fetch the file again"
        )


class NamedToken(TypedDict):
    """A special token as transformers writes it."""

    content: str


class SpecialTokens(TypedDict, total=False):
    """The tokens that a tokenizer_config.json or special_tokens_map.json names."""

    bos_token: str | NamedToken | None
    cls_token: str | NamedToken | None
    eos_token: str | NamedToken | None
    sep_token: str | NamedToken | None


def _named(folder: Path, *roles: str) -> list[str]:
    """The tokens that have these roles ("eos_token") in the files beside a tokenizer.json."""
    files = [folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    named = [check_value(read_json(file), SpecialTokens, file) for file in files if file.exists()]
    return [
        value["content"] if isinstance(value, dict) else value
        for role in roles
        for tokens in named
        if (value := tokens.get(role)) is not None
    ]


def tiktoken_tree(
    path: str,
    pattern: str,
    num_special_tokens: int,
    vocab_size: int | None,
    special_tokens: Sequence[str] = (),
) -> tuple[Tree, Delimiters]:
    """Megatron-LM's TikTokenizer: first the special tokens, then the ranks, cut to `vocab_size` ids in all.

    special_tokens: instead of TIKTOKEN_SPECIALS; <SPECIAL_i> fill up to num_special_tokens.
    """
    ranks = _tiktoken_ranks(path)
    room = (vocab_size or TIKTOKEN_VOCAB_SIZE) - num_special_tokens
    if vocab_size is not None and len(ranks) < room:
        raise UserError(
            f"{path}: has {len(ranks):,} tokens, fewer than tokenizer_vocab_size = {vocab_size:,} less the"
            f" {num_special_tokens:,} special ones; leave --tokenizer-vocab-size out"
        )
    first = special_tokens or TIKTOKEN_SPECIALS
    names = list(
        itertools.islice(
            itertools.chain(first, (f"<SPECIAL_{i}>" for i in itertools.count(len(first)))),
            num_special_tokens,
        )
    )
    return _rank_tree(path, ranks[:room], TIKTOKEN_PATTERNS[pattern], names, specials_first=True), Delimiters(
        "<s>", "</s>"
    )


def llama3_tree(path: str, special_tokens: Sequence[str]) -> tuple[Tree, Delimiters]:
    """Meta's tokenizer.model of Llama 3: tiktoken's lines of `base64 rank`, then the special tokens."""
    ranks = []
    for number, line in enumerate(read_text(path).splitlines()):
        token, _, rank = line.partition(" ")
        try:
            ranks.append(base64.b64decode(token, validate=True))
            right = int(rank) == number
        except (binascii.Error, ValueError):
            right = False
        if not right:
            raise UserError(
                f"{path}: line {number + 1} is not token {number} in base64 and the number; fetch the file"
                " again"
            )
    _check_ranks(ranks, path, "fetch the file again")
    begin, end, *_ = special_tokens
    tree = _rank_tree(path, ranks, LLAMA3_PATTERN, special_tokens, specials_first=False)
    return tree, Delimiters(begin, end)


def _rank_tree(
    path: str, ranks: Sequence[bytes], pattern: str, specials: Sequence[str], *, specials_first: bool
) -> Tree:
    """The tree of tiktoken's ranks, with the ids of the special tokens before or after them.

    tiktoken merges the pair whose result has the lowest rank, `tokenizers` the pair that is first in a list.
    The list of all splits of all tokens into two known tokens, in the order of the ranks, gives the same ids.
    """
    shown = _byte_characters()
    tokens = ["".join(map(shown.__getitem__, token)) for token in ranks]
    ids = [*specials, *tokens] if specials_first else [*tokens, *specials]
    vocab = {token: i for i, token in enumerate(ids)}
    clash = next((t for t in specials if t in set(tokens)), None)
    if clash is not None:
        raise UserError(
            f"{path}: holds {clash!r}, which is also the special token {specials.index(clash)}; mt reads no"
            " vocabulary that has both"
        )
    known = set(tokens)
    lengths = sorted(set(map(len, tokens)) - {0})
    merges = [
        [token[:i], token[i:]]
        for token in tokens
        for i in (range(1, len(token)) if len(token) <= LONG_TOKEN else lengths)
        if token[:i] in known and token[i:] in known and i < len(token)
    ]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tree = _tree(
        None,
        {"type": "Sequence", "pretokenizers": [split, byte_level]},
        byte_level,
        _bpe(vocab, merges, ignore_merges=True),
    )
    add_specials(tree, list(specials))
    return tree


def _tiktoken_ranks(path: str) -> list[bytes]:
    """The tokens in the order of their ranks; raises UserError if the file is not such a list."""
    entries = read_json(path)
    remedy = (
        'give the JSON list of {"rank", "token_bytes", "token_str"} that Megatron-LM\'s TikTokenizer reads'
    )
    if not isinstance(entries, list):
        raise UserError(f"{path}: is not a JSON list; {remedy}")
    tokens = []
    for number, entry in enumerate(entries):
        try:
            tokens.append(base64.b64decode(entry["token_bytes"], validate=True))
            right = entry["rank"] == number
        except (TypeError, KeyError, binascii.Error, ValueError):
            right = False
        if not right or (number < 256 and tokens[number] != bytes([number])):
            raise UserError(
                f"{path}: entry {number} is not token {number} in base64 (the first 256 are the bytes);"
                f" {remedy}"
            )
    _check_ranks(tokens, path, remedy)
    return tokens


def _check_ranks(tokens: Sequence[bytes], path: str, remedy: str) -> None:
    """Raises UserError unless tiktoken's tokens have all bytes, and none of them twice."""
    lacking = not {bytes([byte]) for byte in range(256)} <= set(tokens)
    if lacking or len(set(tokens)) < len(tokens):
        raise UserError(
            f"{path}: {'lacks some of the 256 bytes' if lacking else 'has a token twice'}; {remedy}"
        )


def _byte_characters() -> list[str]:
    """The printable character that byte-level vocabularies write for each byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(256 + others.index(b)) for b in range(256)]


def _bpe(vocab: dict[str, int], merges: list[list[str]], *, ignore_merges: bool) -> Tree:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": vocab,
        "merges": merges,
    }


def _unknown_result(pair: Merge, place: str, vocab_name: str) -> UserError:
    """The error for a merge whose result is not in the vocabulary."""
    shown = pair if isinstance(pair, str) else " ".join(pair)
    return UserError(
        f"{place}: the merge {shown!r} makes {_merged(pair)!r}, which {vocab_name} does not have; give the"
        " two files of one tokenizer"
    )


def _merged(pair: Merge) -> str:
    """The result of a merge."""
    return pair.replace(" ", "") if isinstance(pair, str) else pair[0] + pair[1]


def token_ids(tree: Tree) -> dict[str, int]:
    """The id of every token, added tokens included."""
    vocab = tree["model"].get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    return ids | {t["content"]: t["id"] for t in tree.get("added_tokens") or []}


def add_specials(tree: Tree, contents: list[str]) -> None:
    """Adds special tokens to a tree, with new ids where the vocabulary does not have them."""
    ids = token_ids(tree)
    fresh = itertools.count(max(ids.values(), default=-1) + 1)
    for content in contents:
        tree["added_tokens"].append(
            {
                "id": ids[content] if content in ids else next(fresh),
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )


def hide_specials(tree: Tree) -> Tree:
    """A tree whose special tokens have names that occur in no text, so that no text becomes a control id.

    The special tokens keep their places, on which the ids of other added tokens depend. Their new names are
    made of noncharacters (U+FDD0), which Unicode does not use in texts.
    """
    model, added = dict(tree["model"]), tree["added_tokens"]
    specials = {t["content"] for t in added if t.get("special")} - {model.get("unk_token")}
    specials -= _results_of_merges(specials, model)
    hidden = {content: f"\ufdd0mt special {i}\ufdd0" for i, content in enumerate(sorted(specials))}
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in model["vocab"].items()}
    elif isinstance(model.get("vocab"), list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    added = [{**t, "content": hidden.get(t["content"], t["content"])} for t in added]
    # The post-processor only adds special tokens and offsets.
    return {**tree, "model": model, "added_tokens": added, "post_processor": None}


def _results_of_merges(contents: set[str], model: Tree) -> set[str]:
    """Those of some tokens that are the result of a merge.

    The long list of merges is searched only if a token can be cut into two tokens of the vocabulary.
    """
    vocab = model.get("vocab") or {}
    if not any(
        len(content) > LONG_TOKEN
        or any(content[:i] in vocab and content[i:] in vocab for i in range(1, len(content)))
        for content in contents
    ):
        return set()
    return contents & set(map(_merged, model.get("merges") or ()))
