import dataclasses
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from mt.core.config import UserError
from mt.tests.train.parallel_jobs import FAMILIES as SETTINGS
from mt.tests.train.parallel_jobs import model_config
from mt.train.model.config import FAMILY_SETTINGS, ModelConfig
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import (
    FAMILIES,
    build_model,
    count_parameters,
    families_with,
    family_of,
    sequence_lengths,
)

ROOT = Path(__file__).parents[3]
ALL = pytest.mark.parametrize("name", list(SETTINGS))


def test_every_table_has_the_same_families():
    names = get_args(get_type_hints(ModelConfig)["family"])
    assert set(names) == set(FAMILIES) == set(FAMILY_SETTINGS)


def test_every_family_is_in_the_glossary_and_in_the_table_of_models():
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8").split("\n| family |")[1].split("\n")[0]
    table = (
        (ROOT / "docs" / "models.md").read_text(encoding="utf-8").split("| `--family` |")[1].split("\n\n")[0]
    )
    for name in FAMILIES:
        assert f"`{name}`" in glossary
        assert f"\n| `{name}` |" in table


def test_an_unknown_family_is_refused_with_the_known_names():
    config = ModelConfig()
    object.__setattr__(config, "family", "gtp")  # ModelConfig's own check refuses the name
    known = ", ".join(FAMILIES)
    with pytest.raises(UserError, match=f"model.family = gtp must be one of {known}; did you mean gpt"):
        family_of(config)


@ALL
def test_flops_parameters_and_model_of_a_family_have_the_same_blocks(name):
    config = model_config(name)
    family, model = family_of(config), build_model(config)
    costs = family.block_flops(config, 16, 16)
    assert len(costs) == len(list(model.layers))
    assert family.num_blocks(config) == len(costs) * model.runs_per_block
    assert all(0 < cost.causal <= cost.full for cost in costs)
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())


@ALL
def test_the_modules_that_a_model_lists_belong_to_it(name):
    model = build_model(model_config(name))
    own = set(model.modules())
    for method in ("last_norms", "encoder_norms", "whole_sequence_modules", "seeded_modules"):
        assert set(getattr(model, method)()) <= own
    assert model.last_norms()


def test_lengths_of_a_family_are_settings_of_the_data():
    data = SampleConfig(data_path=("x",), seq_length=48, decoder_seq_length=24)
    assert sequence_lengths(ModelConfig(family="t5"), data) == {"seq_length": 48, "decoder_seq_length": 24}
    for name in set(FAMILIES) - {"t5"}:
        assert family_of(dataclasses.replace(ModelConfig(), family="gpt")).lengths == ("seq_length",)
        assert FAMILIES[name].lengths == ("seq_length",)
    fields = {f.name for f in dataclasses.fields(SampleConfig)}
    for family in FAMILIES.values():
        assert set(family.lengths) | family.data <= fields


def test_families_with_a_property_are_listed_for_messages():
    some = (FAMILIES["gpt"], FAMILIES["t5"])
    assert families_with(lambda family: family in some) == "model.family = gpt or t5"
    assert families_with(lambda family: family.stages is None) == "model.family = ict"


@pytest.mark.parametrize("name", [n for n, family in FAMILIES.items() if family.huggingface])
def test_a_default_model_is_exported_as_an_architecture_of_its_family(name):
    settings = {"t5": "t5_relative", "bert": "bert_post_norm"}.get(name, name)
    family = FAMILIES[name]
    assert family.export_as(model_config(settings)) in family.huggingface
    for architecture in family.huggingface.values():
        assert architecture.always.get("family", "gpt") == name


def test_a_biencoder_starts_from_a_bert_and_a_retro_from_a_gpt():
    sources = {name: model_config(name) for name in ("gpt", "bert", "t5", "ict", "retro")}
    found = {
        name: {other for other, source in sources.items() if family_of(config).warm_start(config, source)}
        for name, config in sources.items()
    }
    assert found["ict"] == {"bert"}
    assert "gpt" in found["retro"]
    assert "retro" not in found["retro"]
    assert not found["gpt"] | found["bert"] | found["t5"]


@ALL
def test_a_model_is_built_without_memory_on_the_meta_device(name):
    with torch.device("meta"):
        model = build_model(model_config(name))
    assert all(p.is_meta for p in model.parameters())
