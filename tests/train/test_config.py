import json
import shutil

import pytest
import yaml

from mt.core.config import UserError
from mt.indexed.build import TokenizeConfig, tokenize
from mt.tokenizer.train import TrainTokenizerConfig, train_tokenizer
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
        (
            {"step_batch_size_schedule": ["0:2"]},
            "schedule needs --train-samples: while .*\n.*leave --global-batch-size and --rampup",
        ),
        ({"step_batch_size_schedule": ["2"]}, "has '2'; each step is TOKENS:SIZE"),
        (
            {"apply_wd_to_qk_layernorm": True},
            "apply_wd_to_qk_layernorm: there are no norms of queries and keys; give --qk-layernorm",
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


@pytest.fixture(scope="module")
def two_vocabularies(tmp_path_factory):
    """For each of two tokenizers: the settings of runs on data that it made."""
    found = []
    for name, words in (("a", "north south east west"), ("b", "lorem ipsum dolor sit amet")):
        folder = tmp_path_factory.mktemp(name)
        (folder / "in.jsonl").write_text(json.dumps({"text": f"{words} " * 40}) + "\n")
        source = (str(folder / "in.jsonl"),)
        train_tokenizer(TrainTokenizerConfig(input=source, output=str(folder / "tokenizer"), vocab_size=265))
        tokenizer = {
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(folder / "tokenizer"),
        }
        prefix = str(folder / "data")
        tokenize(TokenizeConfig(input=source, output_prefix=prefix, workers=1, **tokenizer))
        found.append(
            {
                "tokenizer": tokenizer,
                "data_path": [f"{prefix}_text_document"],
                "split": "100,0,0",
                "eval_iters": 0,
                "seq_length": 8,
                "train_iters": 3,
            }
        )
    return found


def test_data_of_another_tokenizer_is_refused_unless_that_is_allowed(
    settings, two_vocabularies, tmp_path, capsys
):
    a, b = two_vocabularies
    mixed = {**a, "tokenizer": b["tokenizer"]}
    with pytest.raises(UserError, match="data_text_document: was written with another tokenizer"):
        train(settings(tmp_path / "run", **mixed))
    train(settings(tmp_path / "run", **mixed, allow_other_tokenizer=True))
    assert "another tokenizer (vocabulary of 265, this one 265); allowed by" in capsys.readouterr().err
    saved = yaml.safe_load((tmp_path / "run/step_00000003/config.yaml").read_text())
    assert saved["train"]["allow_other_tokenizer"] is True
    ids = {"tokenizer_type": "NullTokenizer", "tokenizer_vocab_size": 265}
    train(settings(tmp_path / "ids", **{**a, "tokenizer": ids}))  # NullTokenizer takes ids as they are


def test_a_checkpoint_of_another_vocabulary_is_refused_and_of_a_smaller_one_is_taken(
    settings, two_vocabularies, tmp_path
):
    a, b = two_vocabularies
    train(settings(tmp_path / "a", **a, vocab_size=512))
    start = {"load": str(tmp_path / "a"), "finetune": True, "vocab_size": 512}
    with pytest.raises(UserError, match=r"the token '.*' has the id \d+ there and (none|\d+) here"):
        train(settings(tmp_path / "b", **b, **start))
    train(settings(tmp_path / "b", **b, **start, allow_other_tokenizer=True))
    more = {**a, "tokenizer": {**a["tokenizer"], "tokenizer_special_tokens": ["<more>"]}}
    (allowed,) = more["data_path"]
    with pytest.raises(UserError, match=f"{allowed}: was written with another tokenizer"):
        train(settings(tmp_path / "more", **more, **start))
    more["data_path"] = [copy_without_manifest(allowed, tmp_path / "copy")]
    train(settings(tmp_path / "more", **more, **start))


def copy_without_manifest(prefix, target):
    for suffix in ("bin", "idx"):
        shutil.copy(f"{prefix}.{suffix}", f"{target}.{suffix}")
    return str(target)
