"""Embedded blocks, compared with plain loops, and a search, compared with all inner products."""

import itertools

import numpy as np
import pytest

from mt.core.config import UserError, build
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.retro import embed_blocks as module
from mt.retro.embed_blocks import (
    BiencoderEmbedder,
    Blocks,
    BlockSearcher,
    EmbedBlocksConfig,
    embed_blocks,
    find_blocks,
)
from mt.retro.verify import VerifyRetrievalConfig, verify
from mt.train.config import TrainConfig
from mt.train.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")

SEQ, DOCUMENTS = 16, 30
WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "lu") for b in ("bel", "dan", "fir", "gon", "hul")]
CLS, SEP = 2, 3


def write(prefix, random, per_document, longest):
    lengths = random.integers(1, longest + 1, int(per_document.sum()))
    writer = IndexedWriter(prefix, np.uint16, prefix.with_suffix(".work"))
    writer.add(random.integers(5, 5 + len(WORDS), int(lengths.sum())), lengths, per_document)
    writer.finish()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with two datasets of sentences, their titles, and a biencoder `model` trained for one step."""
    folder, random = tmp_path_factory.mktemp("blocks"), np.random.default_rng(0)
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n"
    )
    for name in ("a", "b"):
        write(folder / name, random, random.integers(0, 9, DOCUMENTS), 6)
        write(folder / f"{name}_title", random, random.integers(0, 3, DOCUMENTS), 3)
    train_biencoder(folder, "model", 1)
    return folder


def train_biencoder(folder, name, seed):
    tree = {
        "model": {"family": "ict", "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2},
        "data": {"data_path": [str(folder / "a")], "seq_length": SEQ, "split": "100,0,0", "seed": seed},
        "tokenizer": {"tokenizer_type": "BertWordPieceLowerCase", "vocab_file": str(folder / "vocab.txt")},
        "optimizer": {"lr": 1e-3},
        "train": {"micro_batch_size": 4, "train_iters": 1, "eval_iters": 0},
        "checkpoint": {"save": str(folder / name)},
    }
    train(build(TrainConfig, ("test", tree)))


def settings(folder, output, **more):
    given = {
        "load": str(folder / "model"),
        "data_path": [str(folder / "a"), str(folder / "b")],
        "titles_data_path": [str(folder / "a_title"), str(folder / "b_title")],
        "output": str(output),
        "workers": 1,
    }
    return build(EmbedBlocksConfig, ("test", given | more))


def pairs(folder, titled=True):
    data = [IndexedDataset(folder / name) for name in ("a", "b")]
    return data, [IndexedDataset(folder / f"{name}_title") for name in ("a", "b")] if titled else []


def joined(dataset, first, end):
    return [int(t) for i in range(first, end) for t in dataset[i]]


def blocks_by_loop(data, titles, one_sentence):
    """Rows (dataset, document, first, end): at least two sentences, up to SEQ - 3 tokens with the title."""
    least = 1 if one_sentence else 2
    for number, dataset in enumerate(data):
        starts = dataset.document_indices.tolist()
        for document, (first, end) in enumerate(itertools.pairwise(starts)):
            title = 0
            if titles:
                title = len(joined(titles[number], *titles[number].document_indices[document : document + 2]))
            target = SEQ - 3 - min(title, SEQ // 2)
            start, tokens = first, 0
            for s in range(first, end):
                tokens += len(dataset[s])
                left = end - s - 1
                if end - first >= least and (
                    left == 0 or (tokens >= target and left >= least and s + 1 - start >= least)
                ):
                    yield number, document, start, s + 1
                    start, tokens = s + 1, 0


@pytest.mark.parametrize("one_sentence", [False, True])
@pytest.mark.parametrize("titled", [False, True])
def test_blocks_equal_those_of_a_loop_over_the_documents(corpus, titled, one_sentence):
    data, titles = pairs(corpus, titled)
    table = find_blocks(data, titles, SEQ, one_sentence)
    assert [tuple(row) for row in table.tolist()] == list(blocks_by_loop(data, titles, one_sentence))


def test_the_text_and_the_title_of_a_block_are_its_sentences_and_its_documents_title(corpus):
    data, titles = pairs(corpus)
    table = find_blocks(data, titles, SEQ, False)
    blocks = Blocks(table, data, titles, SEQ)
    for number in range(0, len(table), 5):
        dataset, document, first, end = table[number].tolist()
        assert blocks.text(number).tolist() == joined(data[dataset], first, end)
        title = joined(titles[dataset], *titles[dataset].document_indices[document : document + 2])
        assert blocks.title(number).tolist() == title[: SEQ // 2]
    assert Blocks(table, data, [], SEQ).title(0) is None


@pytest.fixture(scope="module")
def embedded(corpus):
    """(the directory of the embedded blocks, its manifest)"""
    return corpus / "db", embed_blocks(settings(corpus, corpus / "db"))


def test_the_best_blocks_are_those_with_the_largest_of_all_inner_products(corpus, embedded):
    directory, manifest = embedded
    encoder = BiencoderEmbedder(str(corpus / "model"))
    data, titles = pairs(corpus)
    blocks = Blocks(find_blocks(data, titles, SEQ, False), data, titles, SEQ)
    assert manifest["counts"] == {"documents": 2 * DOCUMENTS, "blocks": len(blocks.table)}
    rows = []
    for number in range(len(blocks.table)):
        title = blocks.title(number).tolist()
        text = blocks.text(number).tolist()[: SEQ - len(title) - 3]
        rows.append([CLS, *title, SEP, *text, SEP])
    products = encoder.questions(["babel dodan", "lugon"]) @ encoder.blocks(rows).T
    scores, found = BlockSearcher(str(directory), encoder)(["babel dodan", "lugon"], 4)
    np.testing.assert_allclose(scores, -np.sort(-products, 1)[:, :4], rtol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(products, found, 1), scores, rtol=1e-4)


def test_an_interrupted_run_resumes_to_the_same_bytes(corpus, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "block_size", lambda blocks: 16)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "build_index", die)
        with pytest.raises(KeyboardInterrupt):
            embed_blocks(settings(corpus, tmp_path / "db"))
    parts = sorted((tmp_path / "db" / "parts" / "embeddings").glob("*.npy"))
    stamps = [p.stat().st_mtime_ns for p in parts[1:]]
    assert len(stamps) >= 2
    parts[0].unlink()
    with monkeypatch.context() as patch:
        patch.setattr(module, "build_index", die)
        with pytest.raises(KeyboardInterrupt):
            embed_blocks(settings(corpus, tmp_path / "db"))
    assert [p.stat().st_mtime_ns for p in parts[1:]] == stamps
    embed_blocks(settings(corpus, tmp_path / "db"))
    for name in ("blocks.npy", "index.faiss"):
        assert (tmp_path / "db" / name).read_bytes() == (embedded[0] / name).read_bytes(), name
    assert not (tmp_path / "db" / "parts").exists()
    assert embed_blocks(settings(corpus, embedded[0])) == embedded[1], "a finished run is not repeated"


def test_settings_and_data_that_do_not_fit_are_refused(corpus, embedded, tmp_path):
    with pytest.raises(UserError, match="titles_data_path names 1 and data_path 2; give one for each"):
        settings(corpus, tmp_path, titles_data_path=["x"])
    with pytest.raises(UserError, match="nprobe = 0 must be at least 1"):
        settings(corpus, tmp_path, nprobe=0)
    with pytest.raises(UserError, match="data_path must name at least one prefix"):
        settings(corpus, tmp_path, data_path=[], titles_data_path=[])
    write(tmp_path / "single", np.random.default_rng(0), np.ones(3, np.int64), 4)
    alone = {"data_path": [str(tmp_path / "single")], "titles_data_path": []}
    with pytest.raises(UserError, match="single: has no block; tokenize with --split-sentences, or pass"):
        embed_blocks(settings(corpus, tmp_path / "db", **alone))
    assert embed_blocks(settings(corpus, tmp_path / "db", **alone, use_one_sent_docs=True))["counts"] == {
        "documents": 3,
        "blocks": 3,
    }
    train_biencoder(corpus, "another", 2)
    with pytest.raises(UserError, match=r"db: was embedded by another model than the one in --load"):
        BlockSearcher(str(embedded[0]), BiencoderEmbedder(str(corpus / "another")))
    with pytest.raises(UserError, match=r"is not finished blocks; make them with `mt retro embed-blocks"):
        BlockSearcher(str(tmp_path / "none"), BiencoderEmbedder(str(corpus / "model")))


def test_blocks_are_verified_and_one_that_is_not_in_the_data_is_refused(corpus, embedded, tmp_path):
    directory, manifest = embedded
    check = lambda: verify(VerifyRetrievalConfig(directory=str(directory)))["text"]
    assert check().endswith(f"{manifest['counts']['blocks']} blocks")
    data, titles = pairs(corpus)
    table = np.load(directory / "blocks.npy")
    for column, value in (
        ("dataset", 2),
        ("document", DOCUMENTS),
        ("first", 2**63),
        ("end", 2**63),
        ("end", 0),
    ):
        wrong = table.copy()
        wrong[column][3] = value
        blocks = Blocks(wrong, data, titles, SEQ)
        assert len(blocks.text(2))
        for use in (blocks.text, blocks.title):
            with pytest.raises(
                UserError, match=r"blocks.npy: has a block of the sentences .* embed the blocks"
            ):
                use(3)
    with pytest.raises(UserError, match=r"has no block -1|has no block 9,999"):
        Blocks(table, data, titles, SEQ).text(9999)
