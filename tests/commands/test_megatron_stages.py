"""Uneven pipelines of Megatron-LM: megatron-core's own numbers of layers on every rank."""

import types

import pytest

from mt.commands.megatron_stages import as_layout, ends_counted, ends_given, without_empty


def megatrons(stages, virtual, **settings):
    """The layers of every stage, in the order of layers, or None where megatron-core asserts."""
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    config = types.SimpleNamespace(
        pipeline_model_parallel_layout=None,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        num_layers_in_first_pipeline_stage=None,
        num_layers_in_last_pipeline_stage=None,
        account_for_embedding_in_pipeline_split=False,
        account_for_loss_in_pipeline_split=False,
    )
    config.__dict__.update(settings)
    try:
        found = [
            get_num_layers_to_build(config, vp_stage=v if virtual > 1 else None, pp_rank=rank)
            for v in range(virtual)
            for rank in range(stages)
        ]
    except AssertionError:
        return None
    return found if sum(found) == config.num_layers and min(found) >= 0 else None


@pytest.mark.parametrize("virtual", [1, 2])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_stages_with_given_ends_are_megatrons(stages, virtual):
    for layers in range(1, 25):
        for first in (None, 1, 2, 4):
            for last in (None, 0, 2, 6):
                if first is None and last is None:
                    continue
                theirs = megatrons(
                    stages,
                    virtual,
                    num_layers=layers,
                    num_layers_in_first_pipeline_stage=first,
                    num_layers_in_last_pipeline_stage=last,
                )
                assert ends_given(layers, stages, virtual, first, last) == theirs, (layers, first, last)


@pytest.mark.parametrize("virtual", [1, 2])
@pytest.mark.parametrize("stages", [2, 3, 4])
def test_stages_that_count_embedding_and_loss_are_megatrons(stages, virtual):
    for layers in range(1, 25):
        for embedding, loss in ((True, False), (False, True), (True, True)):
            theirs = megatrons(
                stages,
                virtual,
                num_layers=layers,
                account_for_embedding_in_pipeline_split=embedding,
                account_for_loss_in_pipeline_split=loss,
            )
            assert ends_counted(layers, stages, virtual, embedding, loss) == theirs, (layers, embedding, loss)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([2, 2], [2, 2]),
        ([3, 2, 0], [3, 1, 1]),
        ([0, 0, 5], [1, 1, 3]),
        ([1, 1, 2, 0, 0], None),
        ([4, 1, 0, 0], [2, 1, 1, 1]),
    ],
)
def test_every_stage_has_a_block(lengths, expected):
    assert without_empty(lengths) == expected


def test_a_layout_is_written_with_repetitions():
    assert as_layout([3, 1, 2]) == "t*3|t|t*2"
