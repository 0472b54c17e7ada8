"""Training of classifiers, compared with torch's gradients and loaded by fastText."""

import io

import fasttext
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mt.dataprep.filters.fasttext_file import Options, write_model
from mt.dataprep.filters.fasttext_model import (
    NOT_PRUNED,
    FastTextModel,
    document_rows,
    option_numbers,
    word_table,
)
from mt.dataprep.filters.fasttext_trainer import TrainingText, permuted, train

WORDS = [b"</s>", b"the", b"of", b"good", b"bad", "é".encode()]
LABELS = [b"__label__good", b"__label__bad"]
TEXTS = [
    "the good of the good",
    "the bad unheard-of é",
    "",
    "good\nbad </s> the end",
    "bad bad of __label__x the",
]
texts = st.lists(st.sampled_from(["the", "of", "é", "unknown", "</s>", "\0", "__label__good", "\n"])).map(
    " ".join
)


def training_text(texts, labels):
    encoded = [text.encode() for text in texts]
    return TrainingText(
        np.frombuffer(b"".join(encoded), np.uint8),
        np.cumsum([len(e) for e in encoded]).astype(np.int64),
        np.array(labels, np.uint8),
    )


def trained(seed=1, epochs=2, texts=TEXTS, labels=(0, 1, 1, 0, 1), word_ngrams=2, dim=3, rate=0.5):
    options = Options(dim, "softmax", word_ngrams, 50 if word_ngrams > 1 else 0, epoch=epochs)
    text = training_text(texts, labels)
    return train(text, WORDS, np.arange(6, 0, -1), LABELS, options, learning_rate=rate, seed=seed)


def written(model):
    file = io.BytesIO()
    write_model(file, model)
    return file.getvalue()


def rows_of(text, options):
    table, _ = word_table(WORDS)
    data = np.frombuffer(text.encode(), np.uint8)
    return document_rows(data, option_numbers(options, len(WORDS)), *table, NOT_PRUNED)


@hypothesis.given(st.integers(1, 700), st.integers(0, 2**63))
def test_every_number_below_count_comes_once(count, key):
    keys = np.array([key, key ^ 77, 3], np.uint64)
    assert sorted(permuted(i, count, keys) for i in range(count)) == list(range(count))


@hypothesis.given(texts, st.integers(1, 4))
def test_the_rows_of_a_document_are_those_that_its_score_is_made_of(text, word_ngrams):
    model = trained(word_ngrams=word_ngrams)
    rows = rows_of(text, model.options)
    logits = model.output @ model.input[rows].mean(0)
    expected = np.exp(logits) / np.exp(logits).sum()
    assert FastTextModel(model).probabilities(text) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("word_ngrams", [1, 2, 3])
def test_the_weights_are_those_of_torchs_gradient_descent(word_ngrams):
    torch = pytest.importorskip("torch")
    rate, epochs, seed = 0.5, 3, 4
    start = trained(seed, 1, rate=1e-30, word_ngrams=word_ngrams)  # epochs do not change the first weights
    bag = torch.nn.EmbeddingBag.from_pretrained(torch.tensor(start.input), freeze=False, mode="mean")
    output = torch.nn.Linear(3, 2, bias=False)
    output.weight.data.zero_()
    generator = np.random.Generator(np.random.PCG64(seed))
    generator.random(start.input.shape, np.float32)
    keys = generator.integers(0, 1 << 63, (epochs, 6), np.uint64)
    labels = (0, 1, 1, 0, 1)
    for step in range(epochs * 5):
        document = permuted(step % 5, 5, keys[step // 5])
        optimizer = torch.optim.SGD(
            [*bag.parameters(), *output.parameters()], rate * (1 - step / (epochs * 5))
        )
        rows = torch.tensor(rows_of(TEXTS[document], start.options))
        loss = torch.nn.functional.cross_entropy(output(bag(rows[None])), torch.tensor([labels[document]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = trained(seed, epochs, word_ngrams=word_ngrams)
    assert model.input == pytest.approx(bag.weight.detach().numpy(), abs=1e-6)
    assert model.output == pytest.approx(output.weight.detach().numpy(), abs=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    assert written(trained(1)) == written(trained(1))
    assert written(trained(1)) != written(trained(2))


def test_fasttext_loads_the_model_and_gives_its_scores(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(written(trained(epochs=50)))
    theirs, ours = fasttext.load_model(str(path)), FastTextModel.load(path)
    for text in TEXTS:
        known = dict(zip(*theirs.predict(text.replace("\n", " "), 2)))
        assert ours.probabilities(text) == pytest.approx([known[x.decode()] for x in LABELS], abs=1e-5)
    assert ours.predict("the good of")[0] == "good"
    assert ours.predict("bad bad of the")[0] == "bad"


def test_progress_counts_the_documents_of_all_epochs():
    seen = []
    options = Options(2, "softmax", epoch=3)
    train(
        training_text(TEXTS, (0, 1, 1, 0, 1)),
        WORDS,
        np.arange(6, 0, -1),
        LABELS,
        options,
        learning_rate=0.1,
        seed=1,
        advance=seen.append,
    )
    assert sum(seen) == 15
