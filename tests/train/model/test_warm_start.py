import torch

from mt.tests.train.parallel_jobs import model_config
from mt.train.model.biencoder import FROM_BERT
from mt.train.model.family import build_model
from mt.train.model.retro import FROM_GPT


def names(model, start):
    """(names of the model's weights that a checkpoint fills, names of the others)."""
    filled = {
        prefix + name
        for prefix, part in start.parts(model).items()
        for name, _ in part.named_parameters()
        if start.allow_missing is None or not start.allow_missing(name)
    }
    own = {name for name, _ in model.named_parameters()}
    assert filled <= own
    return filled, own - filled


def test_a_bert_fills_both_towers_but_not_their_projections():
    model = build_model(model_config("ict"))
    filled, rest = names(model, FROM_BERT)
    assert rest == {
        f"{tower}.projection.{part}" for tower in ("query", "context") for part in ("weight", "bias")
    }
    assert len([n for n in filled if n.startswith("query.")]) == len(filled) / 2


def test_a_shared_tower_is_filled_once():
    model = build_model(model_config("ict_shared"))
    assert list(FROM_BERT.parts(model)) == ["query.bert."]


def test_the_projections_of_both_towers_start_from_the_same_values():
    model = build_model(model_config("ict"))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    weights = {name: p.data for name, p in model.named_parameters()}
    before = weights["query.projection.weight"].clone()
    FROM_BERT.finish(weights)
    assert torch.equal(weights["context.projection.weight"], before)
    assert torch.equal(weights["query.projection.weight"], before)
    assert not torch.equal(weights["context.bert.embedding.weight"], weights["query.bert.embedding.weight"])


def test_a_gpt_fills_all_weights_of_a_retro_that_a_gpt_has():
    retro = build_model(model_config("retro"))
    filled, rest = names(retro, FROM_GPT)
    gpt = build_model(model_config("gpt", num_layers=6))
    assert filled == {name for name, _ in gpt.named_parameters()}
    assert rest
