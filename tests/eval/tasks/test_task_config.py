"""Settings that the tasks share."""

import pytest

from mt.core.config import UserError
from mt.eval.tasks.lambada import LambadaConfig
from mt.eval.tasks.wikitext import WikitextConfig


def test_all_settings_out_of_range_are_named_together():
    with pytest.raises(
        UserError, match=r"micro_batch_size = 0 must be at least 1\nseq_length = -1 must be at least 1"
    ):
        LambadaConfig(load="x", valid_data=("y",), micro_batch_size=0, seq_length=-1)
    with pytest.raises(UserError, match="valid_data must name a file"):
        LambadaConfig(load="x", valid_data=())
    with pytest.raises(UserError, match="overlapping_eval = 0 must be at least 1"):
        WikitextConfig(load="x", valid_data="y", overlapping_eval=0)
