"""A BERT classifier: its input by the published format, its outputs compared with transformers."""

import json
import math
from pathlib import Path

import pytest
import torch

from mt.eval.classifier import Classifier, PairEncoder, pretrained
from mt.eval.tasks.examples import clean
from mt.eval.tasks.race import read_race
from mt.tests.eval.labelled_data import WORDS, write_race
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.checkpoint.open import open_checkpoint
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.layers import initialize
from mt.train.parallel.mesh import Mesh


def test_inputs_of_race_have_the_published_format(vocabulary, tmp_path):
    encoder = PairEncoder(
        load(TokenizerConfig(tokenizer_type="BertWordPieceLowerCase", vocab_file=vocabulary)), 16
    )
    ids = {
        word: i
        for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)])
    }
    write_race(tmp_path / "race", 1, 0)
    (path,) = (tmp_path / "race").iterdir()
    record = json.loads(path.read_text())
    gap, whole = read_race(path, None)
    assert gap.second == clean(record["article"]) == " ".join(record["article"].split()).replace(" . ", ". ")
    assert gap.first == tuple(record["questions"][0].replace("_", option) for option in record["options"][0])
    assert whole.first == tuple(f"{record['questions'][1]} {option}" for option in record["options"][1])
    assert (gap.id, whole.id, gap.label) == ("high0.txt:0", "high0.txt:1", "ABCD".index(record["answers"][0]))
    batch = encoder.batch([encoder.parts(gap)], torch.device("cpu"))
    article = [ids[w] for w in gap.second.lower().replace(".", " .").split()]
    for row, text in enumerate(gap.first):
        question = [ids[w] for w in text.split()]
        expected = [ids["[CLS]"], *question, ids["[SEP]"], *article][:15] + [ids["[SEP]"]]
        assert batch["tokens"][row].tolist() == expected
        assert batch["token_types"][row].tolist() == [0] * (len(question) + 2) + [1] * (
            len(expected) - len(question) - 2
        )
    assert batch["choices"] == 4


def test_long_inputs_are_truncated_as_in_megatron(vocabulary):
    encoder = PairEncoder(
        load(TokenizerConfig(tokenizer_type="BertWordPieceLowerCase", vocab_file=vocabulary)), 8
    )
    sep, cls = encoder.sep, encoder.cls
    assert encoder.sequence([5] * 20, [6]) == ([cls, 5, 5, 5, 5, 5, 5, sep], 7)
    assert encoder.sequence([5, 5], [6, 6, 6, 6, 6]) == ([cls, 5, 5, sep, 6, 6, 6, sep], 4)
    assert encoder.sequence([5], [6]) == ([cls, 5, sep, 6, sep], 3)


def test_logits_and_loss_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from mt.train.checkpoint.architectures import weights_from_hf
    from mt.train.checkpoint.hf_settings import config_from_hf

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
        initializer_range=0.3,
        num_labels=3,
    )
    theirs = transformers.BertForSequenceClassification(config).eval()
    weights = theirs.state_dict()
    ours = Classifier(config_from_hf(config.to_dict(), "bert"), 3).eval()
    shapes = {name: p.shape for name, p in ours.bert.named_parameters()}
    ours.bert.load_state_dict(
        dict(weights_from_hf("bert", shapes, ours.config, weights, weights.__getitem__, "bert"))
    )
    ours.pooler.load_state_dict(theirs.bert.pooler.dense.state_dict())
    ours.head.load_state_dict(theirs.classifier.state_dict())
    tokens, labels = torch.randint(0, 50, (4, 12)), torch.tensor([0, 2, 1, 1])
    mask = torch.arange(12) < torch.tensor([[12], [5], [9], [12]])
    types = (torch.arange(12) > 4).long().expand(4, 12)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask.long(), token_type_ids=types, labels=labels)
        torch.testing.assert_close(ours(tokens, types, mask, 1), expected.logits, rtol=0, atol=1e-5)
        assert ours.loss(tokens, types, mask, 1, labels).item() == pytest.approx(
            4 * expected.loss.item(), rel=1e-5
        )


def test_the_initial_head_depends_on_the_seed(vocabulary):
    shape = resolve(
        ModelConfig(family="bert", hidden_size=16, num_attention_heads=2, num_layers=1),
        vocab_size=20,
        seq_length=8,
    )
    one, two, other = (Classifier(shape, 3) for _ in range(3))
    for model, seed in ((one, 1), (two, 1), (other, 2)):
        initialize(model, seed)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert math.isclose(one.head.weight.std().item(), 0.02, rel_tol=0.5)


def test_a_classifier_starts_from_an_encoder_without_pretraining_heads(tmp_path, vocabulary):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = len(Path(vocabulary).read_text().split())
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
    }
    theirs = transformers.BertModel(
        transformers.BertConfig(vocab_size=size, initializer_range=0.3, **shape)
    ).eval()
    theirs.save_pretrained(tmp_path)
    transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=True).save_pretrained(tmp_path)
    ours, tokenizer = pretrained(
        open_checkpoint(tmp_path),
        3,
        1,
        Mesh(0, 1, torch.device("cpu")),
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    tokens = torch.randint(0, size, (2, 12))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        hidden = ours.bert(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
        torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            ours.pooler(hidden[:, 0]).tanh(), expected.pooler_output, rtol=0, atol=1e-5
        )
    assert tokenizer.vocab_size == size
