"""Whether a checkpoint is where the user says, told before anything is read."""

import json

import pytest

from mt.core.config import UserError
from mt.train.checkpoint.open import open_checkpoint
from mt.train.checkpoint.presence import check_presence


def test_a_path_that_leads_nowhere_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such checkpoint; check the path"):
        check_presence(tmp_path / "nowhere")


def test_a_training_without_a_checkpoint_yet_is_told_apart_from_a_wrong_path(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"verb": "train", "key": "k"}))
    for open_it in (check_presence, open_checkpoint):
        with pytest.raises(UserError, match=r"has saved no checkpoint yet; .* --save-interval steps"):
            open_it(tmp_path)
    (tmp_path / "step_00000010").mkdir()
    check_presence(tmp_path)


def test_a_folder_of_another_command_or_program_is_left_to_the_reader_of_checkpoints(tmp_path):
    check_presence(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"verb": "data clean"}))
    with pytest.raises(UserError, match="holds no checkpoint"):
        open_checkpoint(tmp_path)
