"""Layouts of pipeline stages, compared with megatron-core's reading of them."""

import pytest

from mt.train.parallel.stage_layout import stage_lengths


@pytest.mark.parametrize(
    "layout",
    [
        "Et*2|(tt|)*5t|tL",
        "Et*7|t*7L",
        "Et*3|(tt|)*6tL",
        "Et|(tt|)*6tL",
        "E,t,t|t,t*3,L",
        "Et*3|(tt|)*6L",
        "Ett||L",
        "Et*3|(tt|)*29m|L",
        "Et|tmmL",
    ],
)
def test_a_layout_is_read_as_megatron_reads_it(layout):
    pytest.importorskip("megatron.core", reason="megatron-core is not installed")
    from megatron.core.transformer.enums import LayerType
    from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

    theirs = PipelineParallelLayerLayout.parse_str_to_list(layout)
    lengths = [stage.count(LayerType.decoder) for stage in theirs]
    depths = sum(stage.count(LayerType.mtp) for stage in theirs)
    assert stage_lengths(layout, empty=True, predictions=depths) == lengths
    if depths:
        with pytest.raises(ValueError, match=f"has {depths} layers m of multi-token prediction, and"):
            stage_lengths(layout, empty=True, predictions=depths + 1)
        return
    if 0 not in lengths:
        assert stage_lengths(layout) == lengths
        assert stage_lengths(layout.replace("E", "").replace("L", "")) == lengths


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("tt|tm", "has 'm'; write t for a block"),
        ("tt|(tt", r"has '\('; write t"),
        ("tE|t", "must begin with E, the embedding"),
        ("Et|Lt", "must begin with E"),
        ("t||t", "has no block in stage 2"),
        ("t*3|", "has no block in stage 2"),
        ("", "has no block in stage 1"),
        ("t*999999999", "is longer than 131,072 letters"),
        ("(" + "t" * 100 + "|)*99999999", "is longer than"),
        ("(t*99999)*99999", "is longer than"),
    ],
)
def test_what_is_no_layout_is_told(layout, message):
    with pytest.raises(ValueError, match=message):
        stage_lengths(layout)
