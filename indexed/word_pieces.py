"""A WordPiece vocabulary as masking needs it: special tokens, T5's sentinels, pieces that continue a word."""

from __future__ import annotations

import dataclasses

from ..core.config import UserError
from ..tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class WordPieces:
    """Special tokens and word boundaries of a vocabulary. An id is None if there is no such token."""

    fingerprint: str
    continues: tuple[bool, ...]  # for every id: whether the piece continues a word ("##ing")
    cls: int | None
    sep: int | None
    mask: int | None
    pad: int | None
    bos: int | None
    eos: int | None
    sentinels: tuple[int, ...]  # T5's <extra_id_0>, <extra_id_1>, ...

    @property
    def size(self) -> int:
        return len(self.continues)

    def require(self, *names: str) -> list[int]:
        """The ids of special tokens by name; raises UserError that lists those which the vocabulary lacks.

        `sentinels` among the names is only checked: there must be one at least.
        """
        missing = [n for n in names if getattr(self, n) in (None, ())]
        if missing:
            remedy = (
                "add sentinels with --vocab-extra-ids 100"
                if missing == ["sentinels"]
                else "give a vocabulary that has them, such as BERT's"
            )
            raise UserError(f"the tokenizer has no token for {', '.join(missing)}; {remedy}")
        return [getattr(self, n) for n in names if n != "sentinels"]


# The spellings of a special token in known vocabularies; the first one that a vocabulary has is taken.
SPECIALS = {
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "bos": ("[BOS]", "<s>", "[CLS]", "<pad>"),
    "eos": ("[EOS]", "</s>", "[SEP]"),
}


def word_pieces(tokenizer: Tokenizer) -> WordPieces:
    """The word pieces of a tokenizer."""
    # decoding a single id gives the name of its piece
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    ids = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    sentinels: list[int] = []
    while (sentinel := ids.get(f"<extra_id_{len(sentinels)}>")) is not None:
        sentinels.append(sentinel)
    specials = {name: next((ids[n] for n in known if n in ids), None) for name, known in SPECIALS.items()}
    return WordPieces(
        tokenizer.fingerprint,
        tuple(p.startswith("##") for p in pieces),
        **specials,
        sentinels=tuple(sentinels),
    )
