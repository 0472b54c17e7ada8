from pathlib import Path

import pytest

from mt.core.config import UserError
from mt.indexed.word_pieces import WordPieces, word_pieces


def test_word_pieces_are_those_of_the_vocabulary_file(bert_tokenizer, bert_vocabulary):
    names = Path(bert_vocabulary).read_text().splitlines()
    words = word_pieces(bert_tokenizer)
    assert words.size == bert_tokenizer.vocab_size
    assert words.continues[: len(names)] == tuple(n.startswith("##") for n in names)
    assert not any(words.continues[len(names) :])
    special = [words.cls, words.sep, words.mask, words.pad]
    assert [names[i] for i in special] == ["[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    assert (words.bos, words.eos) == (words.cls, words.sep), (
        "T5 takes [CLS] and [SEP] where BERT has no other"
    )
    assert [bert_tokenizer.decode([i]) for i in words.sentinels] == [f"<extra_id_{i}>" for i in range(10)]


def test_the_first_known_spelling_of_a_special_token_wins():
    class Pieces:
        pieces = (
            "<pad>",
            "<s>",
            "</s>",
            "[SEP]",
            "[PAD]",
            "x",
            "<mask>",
            "x",
            "<extra_id_1>",
            "<extra_id_0>",
        )
        vocab_size, fingerprint = len(pieces), "pieces"

        def decode(self, ids):
            return "".join(self.pieces[i] for i in ids)

    words = word_pieces(Pieces())
    assert (words.pad, words.bos, words.eos, words.sep, words.mask, words.cls) == (4, 1, 2, 3, 6, None)
    assert words.sentinels == (9, 8), "in the order of their numbers, not of the ids"


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        (("cls", "pad", "mask"), "no token for cls, mask; give a vocabulary that has them, such as BERT's"),
        (("pad", "sentinels"), "no token for sentinels; add sentinels with --vocab-extra-ids 100"),
        (("cls", "sentinels"), "no token for cls, sentinels; give a vocabulary that has them"),
    ],
)
def test_missing_special_tokens_are_named_with_the_remedy(needed, message):
    words = WordPieces("x", (False,), cls=None, sep=1, mask=None, pad=0, bos=1, eos=1, sentinels=())
    with pytest.raises(UserError, match=message):
        words.require(*needed)
    words.require("sep", "pad")
