"""Fill-in-the-middle, compared with a plain loop, and properties that hold for any random numbers."""

import dataclasses

import numpy as np
import pytest

from mt.core import config
from mt.indexed.fim import FimConfig, FimDataset

PRE, MID, SUF, PAD, SPLIT, EOD = range(300, 306)
SPLIT_NAMES = {
    PRE: "<fim_prefix>",
    MID: "<fim_middle>",
    SUF: "<fim_suffix>",
    PAD: "<fim_pad>",
    SPLIT: "<file_sep>",
    EOD: "<eod>",
}


class Words:
    """A token is a letter or a pair "aa", "bb" ...: a text divided inside a pair has other tokens."""

    vocab_size, eod, fingerprint = 306, EOD, "words"

    def encode(self, text):
        out, at = [], 0
        while at < len(text):
            pair = len(text) > at + 1 and text[at] == text[at + 1] and "a" <= text[at] <= "z"
            out.append(ord(text[at]) + (128 if pair else 0))
            at += 2 if pair else 1
        return out

    def decode(self, ids):
        return "".join(SPLIT_NAMES.get(i) or (chr(i) if i < 128 else chr(i - 128) * 2) for i in ids)


@dataclasses.dataclass
class Samples:
    rows: np.ndarray
    fingerprint: str = "samples"

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, k):
        return self.rows[k].copy()

    def batch(self, indices):
        return self.rows[list(indices)].copy()

    def describe(self):
        return [{"prefix": "samples"}]


@pytest.fixture(scope="module")
def samples():
    random = np.random.RandomState(0)
    letters = Words().encode("".join(chr(97 + i) for i in random.randint(0, 6, size=20000)))
    letters = np.array(letters[: 40 * 128]).reshape(40, 128)
    letters[random.random_sample(letters.shape) < 0.03] = EOD
    letters[random.random_sample(letters.shape) < 0.03] = SPLIT
    letters[3, 50:53] = EOD
    letters[4, -1] = EOD
    letters[5, 0] = EOD
    return Samples(letters)


def fim_dataset(samples, **settings):
    return FimDataset(samples, Words(), FimConfig(**settings), seed=7)


def restored(tokens):
    """(the original text of a piece, its order: psm, spm or as it was)."""
    if not tokens or tokens[0] != PRE:
        return Words().decode(tokens), "as it was"
    suffix, middle = tokens.index(SUF), tokens.index(MID)
    decode = Words().decode
    if suffix == 1 and middle:
        # with an empty prefix, both orders begin with the suffix token
        return decode(tokens[middle + 1 :]) + decode(tokens[suffix + 1 : middle]), "spm"
    return (
        decode(tokens[1:suffix]) + decode(tokens[middle + 1 :]) + decode(tokens[suffix + 1 : middle]),
        "psm",
    )


def pieces(tokens, *ends):
    out = [[]]
    for token in tokens:
        if token in ends:
            out.append([])
        else:
            out[-1].append(token)
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {"fim_rate": 1.0},
        {"fim_rate": 0.5},
        {"fim_rate": 1.0, "fim_spm_rate": 0.0},
        {"fim_rate": 1.0, "fim_spm_rate": 1.0},
        {"fim_rate": 0.9, "fim_split_sample": "<file_sep>", "fim_fragment_rate": 0.6},
    ],
)
def test_every_piece_is_a_document_of_the_sample_in_three_parts(samples, settings):
    dataset = fim_dataset(samples, **settings)
    kinds = {"spm": 0, "psm": 0, "as it was": 0}
    for k in range(len(samples)):
        found, before = dataset[k].tolist(), samples[k].tolist()
        assert len(found) == len(before)
        assert dataset[k].dtype == np.int64
        ends = (EOD, SPLIT) if "fim_split_sample" in settings else (EOD,)
        now, then = pieces(found, *ends), pieces(before, *ends)
        whole = len(now) - 1  # the last piece may be truncated or padded
        for piece, original in zip(now[:whole], then[:whole]):
            text, kind = restored(piece)
            assert text == Words().decode(original)
            kinds[kind] += 1
        if len(now) == len(then) and found[-1] == PAD:
            assert restored(pieces(found, *ends)[-1][: -sum(t == PAD for t in found)])[0] == Words().decode(
                then[-1]
            )
    total = sum(kinds.values())
    if settings.get("fim_spm_rate") == 0.0:
        assert kinds["psm"] > 0.8 * total
    if settings.get("fim_spm_rate") == 1.0:
        assert kinds["psm"] == 0
    if settings["fim_rate"] == 0.5:
        assert 0.35 < kinds["as it was"] / total < 0.65


def transformed_by_loop(sample, k):
    """The transformation at fim_rate 0.5 and fim_spm_rate 0.5 as a plain loop over a sample."""
    words, random, out, document = Words(), np.random.RandomState([7, k, 0]), [], []
    for token in [*sample.tolist(), None]:
        if token not in (EOD, None):
            document.append(token)
            continue
        if document and random.random_sample() < 0.5:
            text = words.decode(document)
            a, b = sorted(random.randint(0, len(text) + 1, size=2))
            if random.random_sample() < 0.5:
                out += (
                    [PRE, SUF]
                    + words.encode(text[b:])
                    + [MID]
                    + words.encode(text[:a])
                    + words.encode(text[a:b])
                )
            else:
                out += (
                    [PRE]
                    + words.encode(text[:a])
                    + [SUF]
                    + words.encode(text[b:])
                    + [MID]
                    + words.encode(text[a:b])
                )
        else:
            out += document
        if token == EOD:
            out.append(EOD)
        document = []
    return (out + [PAD] * len(sample))[: len(sample)]


def test_samples_are_those_of_a_plain_loop_in_any_order_and_batch(samples):
    dataset = fim_dataset(samples, fim_rate=0.5)
    wanted = [transformed_by_loop(samples[k], k) for k in range(len(samples))]
    assert [dataset[k].tolist() for k in range(len(samples))] == wanted
    order = np.random.RandomState(1).permutation(len(samples))
    assert dataset.batch(order).tolist() == [wanted[k] for k in order]
    assert dataset[-1].tolist() == wanted[-1]
    assert fim_dataset(samples, fim_rate=0.0).batch(range(9)).tolist() == samples.batch(range(9)).tolist()
    assert (
        len(
            {
                fim_dataset(samples, fim_rate=0.5).fingerprint,
                dataset.fingerprint,
                fim_dataset(samples, fim_rate=0.4).fingerprint,
            }
        )
        == 2
    )


def test_consecutive_end_of_document_tokens_are_kept(samples):
    found = fim_dataset(samples, fim_rate=1.0)[3].tolist()
    assert any(found[i : i + 3] == [EOD] * 3 for i in range(len(found)))


def test_texts_that_begin_with_the_given_words_are_unchanged():
    words = Words()
    rows = np.array([words.encode("keep me as I am, please") + [EOD] + words.encode("change me")])
    found = fim_dataset(Samples(rows), fim_rate=1.0, fim_no_prefix="keep")[0].tolist()
    assert found[:23] == rows[0, :23].tolist()
    assert PRE in found[23:]


def test_a_text_truncated_within_a_character_is_unchanged(gpt2_files):
    from mt.tokenizer.tokenizer import TokenizerConfig, load

    gpt2 = load(TokenizerConfig(**gpt2_files))

    class WithNames:
        vocab_size, eod, fingerprint, encode = gpt2.vocab_size + 4, gpt2.eod, "", staticmethod(gpt2.encode)

        def decode(self, ids):
            return (
                ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"][ids[0] - gpt2.vocab_size]
                if ids[0] >= gpt2.vocab_size
                else gpt2.decode(ids)
            )

    tokens = gpt2.encode("日本語の文章 and more words")
    rows = np.array([tokens[1:] + [gpt2.eod] + tokens])  # 日 is more than one token
    found = FimDataset(Samples(rows), WithNames(), FimConfig(fim_rate=1.0), 3)[0].tolist()
    assert found[: len(tokens)] == rows[0, : len(tokens)].tolist()
    assert gpt2.vocab_size in found[len(tokens) :]


def test_mistakes_are_named(samples):
    with pytest.raises(config.UserError, match=r"fim_rate = 2 must lie in \[0, 1\]"):
        FimConfig(fim_rate=2)
    with pytest.raises(config.UserError, match="fim_fragment_rate needs fim_split_sample"):
        FimConfig(fim_rate=0.5, fim_fragment_rate=0.5)
    with pytest.raises(config.UserError, match="needs a split token, and the tokenizer has none of <none>"):
        fim_dataset(samples, fim_split_sample="<none>")
    from mt.tokenizer.tokenizer import ByteLevelTokenizer

    with pytest.raises(
        config.UserError, match="needs a prefix token, and the tokenizer has none of <fim_prefix>"
    ):
        FimDataset(samples, ByteLevelTokenizer(), FimConfig(fim_rate=0.5), 1)
