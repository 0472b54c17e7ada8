"""open_checkpoint: the same model in every format."""

import pickle
import shutil
from collections import Counter

import pytest
import torch

from mt.core import manifest
from mt.core.config import UserError
from mt.tests.train.checkpoint.transformers_models import random_model, write
from mt.train.checkpoint.base import Progress
from mt.train.checkpoint.commands import ConvertConfig, ExportConfig, convert, export
from mt.train.checkpoint.huggingface import HuggingFaceCheckpoint
from mt.train.checkpoint.megatron import MegatronCheckpoint
from mt.train.checkpoint.native import NativeCheckpoint
from mt.train.checkpoint.open import open_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def places(gpt2_run, tmp_path_factory):
    """{kind of path: path} of the same model in every format."""
    folder = tmp_path_factory.mktemp("places")
    export(ExportConfig(source=str(gpt2_run), output=str(folder / "hf")))
    convert(ConvertConfig(source=str(gpt2_run), output=str(folder / "megatron"), format="torch"))
    return {
        "run": gpt2_run,
        "step": gpt2_run / "step_00000003",
        "hf": folder / "hf",
        "megatron": folder / "megatron",
        "iteration": folder / "megatron" / "iter_0000003",
    }


KINDS = {
    "run": NativeCheckpoint,
    "step": NativeCheckpoint,
    "hf": HuggingFaceCheckpoint,
    "megatron": MegatronCheckpoint,
    "iteration": MegatronCheckpoint,
}


@pytest.mark.parametrize("what", KINDS)
def test_every_format_gives_the_same_settings_and_weights(places, what):
    checkpoint, run = open_checkpoint(places[what]), open_checkpoint(places["run"])
    assert type(checkpoint) is KINDS[what]
    for name in ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "activation"):
        assert getattr(checkpoint.config, name) == getattr(run.config, name)
    assert (checkpoint.seq_length, run.step) == (16, 3)
    assert checkpoint.step == (0 if what == "hf" else 3)
    expected = dict(run.load_model().named_parameters())
    found = dict(checkpoint.load_model().named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name][:60], weight[:60]), name
        assert torch.equal(checkpoint.read_weight(name, weight.shape)[:60], weight[:60]), name


@pytest.mark.parametrize("what", KINDS)
def test_a_checkpoint_can_be_pickled(places, what):
    checkpoint = open_checkpoint(places[what])
    again = pickle.loads(pickle.dumps(checkpoint))
    assert (type(again), again.path, again.config) == (type(checkpoint), checkpoint.path, checkpoint.config)
    assert len(pickle.dumps(checkpoint)) < 1000, "its path alone"


def test_only_checkpoints_of_mt_have_moments_and_a_position_in_the_data(places):
    run = open_checkpoint(places["run"])
    assert set(run.moment_names()) == {"exp_avg", "exp_avg_sq"}
    assert (run.progress().step, run.progress().consumed_samples, run.progress().updates) == (3, 24, 3)
    assert run.data_identity is not None
    assert run.run_settings["train"]["train_iters"] == 3
    for what in ("hf", "megatron"):
        other = open_checkpoint(places[what])
        assert (other.moment_names(), other.data_identity, other.run_settings) == ((), None, {})
        assert other.progress() == Progress()


def test_loading_a_model_and_its_tokenizer_hashes_each_file_once(places, monkeypatch):
    hashed = Counter()
    digest = manifest.file_digest

    def counted(path):
        hashed[path] += 1
        return digest(path)

    monkeypatch.setattr(manifest, "file_digest", counted)
    checkpoint = open_checkpoint(places["run"])
    checkpoint.load_model()
    checkpoint.load_tokenizer()
    assert checkpoint.config.family == "gpt"
    names = {str(path.relative_to(places["step"])) for path in hashed}
    assert {"__0_0.distcp", ".metadata", "config.yaml"} <= names
    assert set(hashed.values()) == {1}


def test_a_step_directory_with_a_config_json_is_a_checkpoint_of_mt(places, tmp_path):
    shutil.copytree(places["step"], tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text("{}")
    assert type(open_checkpoint(tmp_path / "ours")) is NativeCheckpoint


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_hugging_face_directory_with_one_file_is_refused_with_what_is_missing(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=r"has no config.json|model_type is None"):
        open_checkpoint(tmp_path)


def test_a_step_can_be_chosen_only_from_a_run_of_mt(places, tmp_path):
    assert open_checkpoint(places["run"], 3).path == places["step"]
    source = write(random_model("llama"), tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs: has no checkpoint of step 3, only of none"):
        open_checkpoint(source, 3)
