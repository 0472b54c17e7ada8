import pickle
import shutil

import pytest
import torch

from mt.config import Failure, UserError
from mt.train.checkpoint import InspectConfig, Reader, find, inspect, load, load_model, newest_whole
from mt.train.loop import train
from mt.train.model.gpt import GPT

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def damage(path, how):
    part = path / "__0_0.distcp"
    raw = part.read_bytes()
    if how == "cut short":
        part.write_bytes(raw[:-1])
    elif how == "changed":
        part.write_bytes(raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:])
    elif how == "missing":
        part.unlink()
    else:
        (path / "state.json").write_text('{"step": 8,')


def test_a_model_comes_back_with_its_tokenizer_and_settings(finished):
    model, tokenizer, settings = load_model(finished[0])
    assert not model.training
    assert (tokenizer.vocab_size, settings.model.vocab_size, settings.model.padded_vocab_size) == (60, 60, 128)
    assert settings.model.max_position_embeddings == settings.data.seq_length == 16
    tokens = torch.arange(12).reshape(1, 12)
    early = load_model(finished[0] / "step_00000003")[0]
    assert not torch.equal(model(tokens), early(tokens))
    assert torch.equal(model(tokens), load_model(finished[0] / "step_00000008")[0](tokens))


@pytest.mark.parametrize("how", ["cut short", "changed", "missing", "state"])
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before_and_says_so(copy, how, capsys):
    damage(copy / "step_00000008", how)
    assert newest_whole(copy).name == "step_00000006"
    assert "step_00000008" in (said := capsys.readouterr().err)
    assert "falling back to the checkpoint before it" in said


def test_when_all_are_broken_it_says_so(copy):
    for path in copy.glob("step_*"):
        damage(path, "missing")
    with pytest.raises(Failure, match="none of its 3 checkpoints is whole; start again with --overwrite"):
        newest_whole(copy)


def test_what_is_no_checkpoint_is_refused(tmp_path, copy):
    with pytest.raises(UserError, match="no such checkpoint; check the path"):
        find(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint of mt train"):
        find(tmp_path)
    damage(copy / "step_00000006", "cut short")
    with pytest.raises(UserError, match=r"step_00000006: __0_0.distcp has [\d,]+ bytes, not [\d,]+; use another checkpoint"):
        find(copy / "step_00000006")


def test_only_the_newest_are_kept(settings, tmp_path):
    train(settings(tmp_path / "run", keep_last=2, save_interval=2, train_iters=7))
    assert sorted(p.name for p in (tmp_path / "run").glob("*step*")) == ["step_00000006", "step_00000007"]


def test_a_checkpoint_of_another_shape_is_refused_with_the_first_difference(finished, settings, tmp_path):
    with pytest.raises(UserError, match=r"holds another model: embedding.weight is \(128, 32\) there and \(128, 40\) here; give the model's settings as in .*config.yaml"):
        train(settings(tmp_path / "wider", hidden_size=40, load=str(finished[0])))
    with pytest.raises(UserError, match=r"holds another model: layers.2.mixer_norm.weight is absent there and \(32,\) here"):
        train(settings(tmp_path / "deeper", num_layers=3, load=str(finished[0])))


def test_inspect_tells_progress_and_every_tensor(finished):
    found = inspect(InspectConfig(checkpoint=str(finished[0])))
    model = load_model(finished[0])[0]
    assert found["parameters"] == sum(p.numel() for p in model.parameters()) == finished[1]["parameters"]
    assert found["step"] == 8
    assert found["consumed_samples"] == 64
    assert found["tensors"]["exp_avg.embedding.weight"] == {"shape": [128, 32], "dtype": "float32"}
    assert "step 8, 64 samples, 1,024 tokens" in found["text"]
    assert "layers.1.mixer.qkv.weight" in found["text"]


def test_the_same_run_writes_the_same_bytes(finished, settings, tmp_path):
    save = tmp_path / "again"
    train(settings(save, keep_last=0))
    for part in ("__0_0.distcp", "state.json"):
        again, before = ((folder / "step_00000008" / part).read_bytes() for folder in (save, finished[0]))
        if part == "state.json":  # the saved configuration names its own directory, which its digest shows
            again, before = again.split(b'"files"')[0], before.split(b'"files"')[0]
        assert again == before


def test_loading_into_a_model_leaves_the_optimizer_alone_unless_given(finished):
    settings = load_model(finished[0])[2]
    model = GPT(settings.model)
    progress = load(finished[0] / "step_00000006", model, None)
    assert (progress.step, progress.consumed_samples, progress.consumed_tokens) == (6, 48, 768)


class Trap:
    def __reduce__(self):
        return print, ("a stranger's code runs",)


def test_a_strangers_metadata_runs_no_code(copy, capsys):
    path = find(copy)
    for content in (pickle.dumps(Trap()), pickle.dumps({"a": shutil.rmtree}), b"", b"garbage"):
        (path / ".metadata").write_bytes(content)
        with pytest.raises(UserError, match="not the metadata of a checkpoint"):
            Reader(path).read_metadata()
    assert capsys.readouterr().out == ""
