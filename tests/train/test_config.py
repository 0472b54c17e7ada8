import pytest

from mt.core.config import UserError
from mt.train import loop
from mt.train.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"global_batch_size": 7},
            (
                "train.global_batch_size = 7 is not a multiple of train.micro_batch_size = 2 x 1"
                " data-parallel process = 2; use 6 or 8"
            ),
        ),
        (
            {"seq_length": 32, "max_position_embeddings": 16},
            "data.seq_length = 32 is longer than model.max_position_embeddings = 16",
        ),
        ({"vocab_size": 50}, "model.vocab_size = 50 is smaller than the tokenizer's 60"),
        ({"tokenizer_vocab_size": 50}, r"the data holds token 59, but model.vocab_size = 50"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide model.hidden_size = 32"),
        ({"train_iters": None}, "the run's length must be given once: --train-iters or --train-samples"),
        (
            {"train_iters": None, "train_samples": 3, "lr_warmup_iters": 0},
            "train.train_samples = 3 is less than one global batch of 8",
        ),
        (
            {"rampup_batch_size": [2, 2, 8]},
            "rampup_batch_size needs --train-samples: while the batch size grows",
        ),
        ({"load": "nowhere"}, "nowhere: no such checkpoint; check the path"),
        ({"finetune": True}, "checkpoint.finetune needs --load"),
        ({"split": "100,0,0"}, "leaves none for valid"),
    ],
)
def test_bad_input_is_refused_before_anything_is_built(settings, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(loop, "Trainer", None)
    with pytest.raises(UserError, match=message):
        train(settings(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()  # the corrected command needs no --overwrite
