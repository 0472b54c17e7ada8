"""Probabilities of a Hugging Face classifier, compared with transformers one text at a time."""

import io
import json
import shutil

import pytest
import torch

from mt.core.config import UserError
from mt.eval.hf_classifier import ScoreConfig, score

transformers = pytest.importorskip("transformers", reason="reads the classifier, and is the oracle")
TEXTS = ["a b", "b", "c a b a", ""]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=7,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=1.0,
        id2label={0: "fine", 1: "rude", 2: "toxic"},
        label2id={"fine": 0, "rude": 1, "toxic": 2},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def scores(classifier, monkeypatch, capsys, **settings):
    lines = "".join(json.dumps({"id": "x", "text": text}) + "\n" for text in TEXTS)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    score(ScoreConfig(classifier=str(classifier), **settings))
    return [float(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(("label", "column"), [("toxic", 2), ("Rude", 1), (None, 2)])
def test_the_score_is_the_probability_of_the_label(classifier, monkeypatch, capsys, label, column):
    model = transformers.BertForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    with torch.no_grad():
        expected = [
            model(**tokenizer(text, return_tensors="pt")).logits.softmax(1)[0, column].item()
            for text in TEXTS
        ]
    assert scores(classifier, monkeypatch, capsys, label=label, batch_size=3) == pytest.approx(
        expected, abs=1e-5
    )


def test_an_unknown_label_and_a_directory_without_a_model_are_named(
    classifier, monkeypatch, capsys, tmp_path
):
    with pytest.raises(UserError, match=r"label = nice is none of .* choose one of fine, rude, toxic"):
        scores(classifier, monkeypatch, capsys, label="nice")
    with pytest.raises(UserError, match=r"has no config\.json"):
        scores(tmp_path, monkeypatch, capsys)


def test_a_model_without_a_trained_head_is_refused(classifier, monkeypatch, capsys, tmp_path):
    """transformers would make random weights for it."""
    transformers.BertForSequenceClassification.from_pretrained(classifier).bert.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no weight classifier\.bias"):
        scores(tmp_path, monkeypatch, capsys)


def test_weights_of_torch_save_are_read(classifier, monkeypatch, capsys, tmp_path):
    expected = scores(classifier, monkeypatch, capsys)
    shutil.copytree(classifier, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    state = transformers.BertForSequenceClassification.from_pretrained(classifier).state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert scores(tmp_path, monkeypatch, capsys) == expected


def test_files_elsewhere_are_not_read(classifier, monkeypatch, capsys, tmp_path):
    shutil.copytree(classifier, tmp_path / "c")
    (tmp_path / "elsewhere.txt").write_text("[PAD]")
    file = tmp_path / "c" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "vocab_file": str(tmp_path / "elsewhere.txt")}))
    with pytest.raises(UserError, match=r"vocab_file = .* names a file outside of its folder"):
        scores(tmp_path / "c", monkeypatch, capsys)
    file.write_text(json.dumps(settings))
    (tmp_path / "c" / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(UserError, match="is an adapter of another model"):
        scores(tmp_path / "c", monkeypatch, capsys)


@pytest.mark.parametrize("size", [0, -1, 2**63])
def test_a_batch_size_is_bounded(size):
    with pytest.raises(UserError, match=r"^batch_size = .* must be at least 1"):
        ScoreConfig(classifier="x", batch_size=size)
