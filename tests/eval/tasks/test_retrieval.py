"""Blocks found for questions: embeddings, index and recall, compared with loops; training raises recall."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mt.core.config import UserError, build
from mt.eval.tasks.retrieval import RetrievalConfig, contains, retrieval, words
from mt.indexed.format import IndexedDataset, IndexedWriter
from mt.indexed.ict_dataset import build_blocks_mapping, title_lengths
from mt.retro.embed_blocks import BiencoderEmbedder, BlockSearcher, EmbedBlocksConfig, embed_blocks
from mt.train.loop import TrainConfig, train

faiss = pytest.importorskip("faiss")
TOPICS = 25
WORDS = [
    f"{a}{b}"
    for a in ("ba", "do", "ki", "lu", "me", "no", "ra", "si", "tu", "wo")
    for b in ("bel", "dan", "fir", "gon", "hul", "jam", "kor", "lim", "mus", "net")
]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(folder, settings of the data, settings of the tokenizer). Each document has a topic of four words."""
    folder = tmp_path_factory.mktemp("topics")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    random = np.random.RandomState(0)
    for name, per_document, length in (("text", 4, 8), ("title", 1, 3)):
        tokens = [
            5 + 4 * (document % TOPICS) + random.randint(4, size=length)
            for document in range(200)
            for _ in range(per_document)
        ]
        writer = IndexedWriter(folder / f"{name}_sentence", np.uint16, folder / f"work-{name}")
        writer.add(np.concatenate(tokens), np.full(200 * per_document, length), np.full(200, per_document))
        writer.finish()
    data = {
        "data_path": [str(folder / "text_sentence")],
        "titles_data_path": [str(folder / "title_sentence")],
    }
    questions = [
        {"question": " ".join(WORDS[4 * topic : 4 * topic + 3]), "answers": [WORDS[4 * topic + 3].upper()]}
        for topic in range(TOPICS)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder, data, {"tokenizer_type": "BertWordPieceLowerCase", "vocab_file": str(folder / "vocab.txt")}


@pytest.fixture(scope="module")
def models(corpus):
    """(an untrained biencoder, a trained one)"""
    folder, data, tokenizer = corpus
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, steps in (("raw", 1), ("trained", 40)):
        tree = {
            "model": {"family": "ict", "num_layers": 1, "hidden_size": 32, "num_attention_heads": 4},
            "data": {**data, "seq_length": 32, "split": "100,0,0"},
            "tokenizer": tokenizer,
            "optimizer": {"lr": 3e-3 if steps > 1 else 1e-12},
            "train": {"micro_batch_size": 16, "train_iters": steps, "eval_iters": 0},
            "checkpoint": {"save": str(folder / name)},
        }
        train(build(TrainConfig, ("test", tree)))
    torch.set_num_threads(before)
    return str(folder / "raw"), str(folder / "trained")


def embed(corpus, model, output, **more):
    return embed_blocks(
        build(
            EmbedBlocksConfig,
            ("test", {**corpus[1], "load": model, "output": str(output), "workers": 1, **more}),
        )
    )


@pytest.fixture(scope="module")
def databases(corpus, models):
    """The directories of blocks embedded by each model."""
    for name, model in zip(("raw-db", "db"), models):
        embed(corpus, model, corpus[0] / name)
    return str(corpus[0] / "raw-db"), str(corpus[0] / "db")


def evaluate(corpus, model, db, **more):
    tree = {
        "load": model,
        "db": db,
        "valid_data": [str(corpus[0] / "questions.jsonl")],
        "retriever_report_topk_accuracies": [1, 5],
        **more,
    }
    return retrieval(build(RetrievalConfig, ("test", tree)))


def test_training_raises_recall(corpus, models, databases):
    raw, trained = (evaluate(corpus, model, db) for model, db in zip(models, databases))
    assert trained["examples"] == TOPICS
    assert raw["scores"]["recall@5"] < 0.5
    assert trained["scores"]["recall@1"] > 0.7
    assert trained["scores"]["recall@5"] > 0.8
    assert 0 <= trained["scores"]["recall@5_stderr"] < 0.1


def test_blocks_and_inner_products_are_those_of_a_loop(corpus, models, databases):
    data, titles = (IndexedDataset(corpus[1][name][0]) for name in ("data_path", "titles_data_path"))
    encoder = BiencoderEmbedder(models[1])
    search = BlockSearcher(databases[1], encoder)
    mapping = build_blocks_mapping(
        data.document_indices, data.lengths, title_lengths(titles, 200, 32), None, 29, 1
    )
    mapping = mapping[np.argsort(mapping[:, 3])]
    assert search.blocks.table["first"].tolist() == mapping[:, 0].tolist()
    assert search.blocks.table["document"].tolist() == mapping[:, 2].tolist()
    with torch.no_grad():
        vectors = []
        for first, end, document, _ in mapping.tolist():
            title, text = titles[document].tolist(), [int(t) for i in range(first, end) for t in data[i]]
            ids = torch.tensor([[2, *title, 3, *text[: 32 - 3 - len(title)], 3]])
            vectors.append(encoder.model.context.bert(ids)[0, 0])
        question = torch.tensor([[2, *encoder.tokenizer.encode(WORDS[7]), 3]])
        products = torch.stack(vectors) @ encoder.model.query.bert(question)[0, 0]
    scores, found = search([WORDS[7]], 3)
    assert scores[0] == pytest.approx(products.sort(descending=True).values[:3].numpy(), rel=1e-4)
    assert products[found[0]].numpy() == pytest.approx(scores[0], rel=1e-4)


def test_recall_at_a_single_k_is_computed_and_files_without_a_question_are_refused(corpus, models, databases):
    one = evaluate(corpus, models[1], databases[1], retriever_report_topk_accuracies=[5])
    assert set(one["scores"]) == {"recall@5", "recall@5_stderr"}
    (corpus[0] / "bad.jsonl").write_text('{"question": "who?"}\n')
    with pytest.raises(UserError, match=r"no question could be read \(1 were set aside\); check the file"):
        evaluate(corpus, models[1], databases[1], valid_data=[str(corpus[0] / "bad.jsonl")], on_error="skip")


def test_predictions_have_the_rank_of_the_first_block_with_an_answer(corpus, models, databases, tmp_path):
    summary = evaluate(corpus, models[1], databases[1], output=str(tmp_path / "out"))
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == TOPICS
    assert summary["scores"]["recall@1"] == pytest.approx(sum(line["first"] == 1 for line in lines) / TOPICS)
    for topic, line in enumerate(lines):
        assert (WORDS[4 * topic + 3] in line["best"][0]["text"].split()) == (line["first"] == 1)
    assert evaluate(corpus, models[1], databases[1], output=str(tmp_path / "out")) == summary


@pytest.mark.slow  # two processes that import torch
def test_bytes_do_not_depend_on_the_workers(corpus, models, databases, tmp_path):
    embed(corpus, models[1], tmp_path / "two", workers=2)
    for name in ("blocks.npy", "index.faiss"):
        assert (tmp_path / "two" / name).read_bytes() == (corpus[0] / "db" / name).read_bytes()
    assert not (tmp_path / "two" / "parts").exists()


def test_answers_are_matched_as_in_dpr():
    assert words("Don't, U.S. Beyonc\u00e9\n") == ["don", "'", "t", ",", "u", ".", "s", ".", "beyonce\u0301"]
    assert contains(words("the beyonc\u00e9-knowles tour"), words("Beyonc\u00e9"))
    assert not contains(words("parisian"), words("Paris"))
    assert contains(words("in 1905 (A.D.)"), words("1905 (a.d.)"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"load": "raw"},
            "db: was embedded by another model than the one in --load; give that one, or embed the blocks",
        ),
        (
            {"db": "trained"},
            "trained: is not finished blocks; make them with `mt retro embed-blocks --output .*trained`",
        ),
        ({"valid_data": "empty.jsonl"}, "empty.jsonl: the file is empty; check the path"),
        ({"valid_data": "none.jsonl"}, "none.jsonl, line 1: has no answers; mend it"),
        (
            {"valid_data": "wrong.tsv"},
            "wrong.tsv, line 1: is not a question, a tab and a list of answers, such as",
        ),
        (
            {"faiss_match": "regex", "valid_data": "regex.jsonl"},
            r"regex.jsonl, question regex.jsonl:1: the answer '\(' is no regular expression",
        ),
    ],
)
def test_mistakes_are_named(corpus, models, databases, change, message):
    folder = corpus[0]
    (folder / "empty.jsonl").write_text("")
    (folder / "none.jsonl").write_text('{"question": "who?", "answers": []}\n')
    (folder / "wrong.tsv").write_text("who?\tParis\n")
    (folder / "regex.jsonl").write_text('{"question": "who?", "answers": ["("]}\n')
    settings = {name: value if value == "regex" else str(folder / value) for name, value in change.items()}
    with pytest.raises(UserError, match=message):
        evaluate(corpus, settings.pop("load", models[1]), settings.pop("db", databases[1]), **settings)


def test_data_of_another_tokenizer_and_titles_without_data_are_refused(corpus, models, tmp_path):
    writer = IndexedWriter(tmp_path / "other", np.uint16, tmp_path / "work")
    writer.add(np.array([5, 6, 300, 7]), np.array([2, 2]), np.array([2]))
    writer.finish()
    with pytest.raises(
        UserError,
        match=(
            r"other: has the token 300, but the tokenizer has only 105; give the tokenizer that made the data"
        ),
    ):
        embed(corpus, models[1], tmp_path / "db", data_path=[str(tmp_path / "other")], titles_data_path=[])
    with pytest.raises(UserError, match=r"titles_data_path names 2 and data_path 1; give one for each"):
        embed(corpus, models[1], tmp_path / "db", titles_data_path=corpus[1]["titles_data_path"] * 2)
    assert not (tmp_path / "db").exists()


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "."]), max_size=8),
    st.lists(st.sampled_from(["a", "b", "ab"]), max_size=3),
)
def test_an_answer_is_in_a_block_where_its_words_follow_each_other(block, answer):
    places = range(len(block) - len(answer) + 1)
    assert contains(block, answer) == any(block[i : i + len(answer)] == answer for i in places)
