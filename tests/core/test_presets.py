"""Presets are the YAML files beside the module of a configuration class."""

import pytest
import yaml

from mt.core.config import UserError
from mt.core.presets import presets, read_preset
from mt.dataprep.filters import clean


def test_presets_are_the_files_beside_the_module_and_others_are_refused_with_the_nearest_name():
    known = presets(clean.CleanConfig)
    assert {path.parent.parent.joinpath("clean.py") for path in known.values()} == {
        known["prose"].parents[1] / "clean.py"
    }
    assert read_preset(clean.CleanConfig, "prose") == yaml.safe_load(known["prose"].read_text())
    with pytest.raises(
        UserError, match=r"preset 'proze' is not known; choose one of c4, .*; did you mean prose"
    ):
        read_preset(clean.CleanConfig, "proze")
