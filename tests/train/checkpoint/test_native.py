import json
import shutil
import time

import pytest
import torch
import yaml

from mt.core import manifest
from mt.core.config import Failure, UserError, build
from mt.train import loop
from mt.train.checkpoint.commands import InspectConfig, inspect
from mt.train.checkpoint.native import Saver, newest_whole, whats_wrong
from mt.train.checkpoint.open import open_checkpoint
from mt.train.loop import train
from mt.train.model.family import build_model

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


def test_a_model_is_loaded_with_its_tokenizer_and_settings(finished):
    checkpoint = open_checkpoint(finished[0])
    model, shape = checkpoint.load_model(), checkpoint.config
    assert not model.training
    assert (checkpoint.load_tokenizer().vocab_size, shape.vocab_size, shape.padded_vocab_size) == (
        60,
        60,
        128,
    )
    assert shape.max_position_embeddings == checkpoint.seq_length == 16
    tokens = torch.arange(12).reshape(1, 12)
    early = open_checkpoint(finished[0] / "step_00000003").load_model()
    assert not torch.equal(model(tokens), early(tokens))
    assert torch.equal(model(tokens), open_checkpoint(finished[0] / "step_00000008").load_model()(tokens))


@pytest.mark.parametrize("how", ["cut short", "changed", "missing", "state"])
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before_and_says_so(copy, how, capsys):
    damage(copy / "step_00000008", how)
    assert newest_whole(copy).path.name == "step_00000006"
    assert "step_00000008" in (message := capsys.readouterr().err)
    assert "falling back to the checkpoint before it" in message


@pytest.mark.parametrize("how", ["cut short", "missing"])
def test_a_finished_run_whose_last_checkpoint_is_damaged_repeats_only_its_last_steps(
    finished, copy, settings, how, capsys
):
    numbers = (copy / "step_00000008" / "__0_0.distcp").read_bytes()
    damage(copy / "step_00000008", how)
    again = train(settings(copy, keep_last=0))
    message = capsys.readouterr().err
    assert "is not what was written when this run ended; going on from what is whole" in message
    assert "falling back to the checkpoint before it" in message
    assert "step 7/8" in message or "step 8/8" in message
    assert "step 6/8" not in message
    assert again["curve"] == finished[1]["curve"]
    assert (copy / "step_00000008" / "__0_0.distcp").read_bytes() == numbers


@pytest.mark.parametrize("ranks", [1, 2, 3, 100])
def test_ranks_that_divide_the_files_report_a_broken_one_once(copy, ranks):
    step = copy / "step_00000008"
    assert not any(whats_wrong(step, rank, ranks) for rank in range(ranks))
    files = json.loads((step / "state.json").read_text())["files"]
    for file in files:
        content = (step / file["name"]).read_bytes()
        (step / file["name"]).write_bytes(content + b" ")
        found = [wrong for rank in range(ranks) if (wrong := whats_wrong(step, rank, ranks))]
        assert found == [f"{file['name']} has {len(content) + 1:,} bytes, not {len(content):,}"]
        (step / file["name"]).write_bytes(content)


def test_a_finished_run_without_its_log_keeps_its_checkpoints(copy, settings):
    (copy / "log.jsonl").unlink()
    with pytest.raises(
        Failure,
        match=(
            r"its checkpoints are complete, but its log.jsonl has lost its lines; --load takes the"
            r" checkpoints,"
            r" --overwrite trains anew"
        ),
    ):
        train(settings(copy, keep_last=0))
    assert newest_whole(copy).path.name == "step_00000008"


def test_a_run_whose_checkpoints_are_all_broken_ends_with_a_message(copy):
    for path in copy.glob("step_*"):
        damage(path, "missing")
    with pytest.raises(
        Failure, match=r"none of its checkpoints is whole \(step_00000003: .*\); start again with --overwrite"
    ):
        newest_whole(copy)


def test_a_path_without_a_whole_checkpoint_is_refused(tmp_path, copy):
    with pytest.raises(UserError, match="no such checkpoint; check the path"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint of mt train"):
        open_checkpoint(tmp_path)
    damage(copy / "step_00000006", "cut short")
    with pytest.raises(
        UserError, match=r"step_00000006: __0_0.distcp has [\d,]+ bytes, not [\d,]+; use another checkpoint"
    ):
        open_checkpoint(copy / "step_00000006")


def test_only_the_newest_checkpoints_are_kept(settings, tmp_path):
    train(settings(tmp_path / "run", keep_last=2, save_interval=2, train_iters=7))
    assert sorted(p.name for p in (tmp_path / "run").glob("*step*")) == ["step_00000006", "step_00000007"]


def test_a_checkpoint_of_another_shape_is_refused_with_the_first_difference(finished, settings, tmp_path):
    with pytest.raises(
        UserError,
        match=(
            r"holds another model: embedding.weight is \(128, 32\) there and \(128, 40\) here; give the"
            r" model's settings as in .*config.yaml"
        ),
    ):
        train(settings(tmp_path / "wider", hidden_size=40, load=str(finished[0])))
    with pytest.raises(
        UserError, match=r"holds another model: layers.2.mixer_norm.weight is absent there and \(32,\) here"
    ):
        train(settings(tmp_path / "deeper", num_layers=3, load=str(finished[0])))


def test_the_same_run_writes_the_same_bytes(finished, settings, tmp_path):
    save = tmp_path / "again"
    train(settings(save, keep_last=0))
    for part in ("__0_0.distcp", "state.json"):
        again, before = ((folder / "step_00000008" / part).read_bytes() for folder in (save, finished[0]))
        if (
            part == "state.json"
        ):  # config.yaml contains the path of its run, so the digests of the two runs differ
            again, before = again.split(b'"files"')[0], before.split(b'"files"')[0]
        assert again == before


def test_loading_into_a_model_leaves_the_optimizer_alone_unless_given(finished):
    checkpoint = open_checkpoint(finished[0] / "step_00000006")
    progress = checkpoint.load(build_model(checkpoint.config), None)
    assert (progress.step, progress.consumed_samples, progress.consumed_tokens) == (6, 48, 768)


def content(path):
    """The bytes of a step's files, without those that contain the path of the run and their digests."""
    files = {
        p.name: p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and p.name not in ("config.yaml", "state.json", ".metadata")
    }
    state = json.loads((path / "state.json").read_text())
    return files, {k: v for k, v in state.items() if k != "files"}


def test_an_async_save_writes_the_same_bytes(finished, settings, tmp_path):
    save = tmp_path / "async"
    train(settings(save, keep_last=0, async_save=True))
    for step in ("step_00000003", "step_00000006", "step_00000008"):
        assert content(save / step) == content(finished[0] / step)
    assert not list(save.glob(".*"))


def test_training_continues_while_a_checkpoint_is_written_and_the_next_save_waits(
    settings, tmp_path, monkeypatch
):
    steps, writes, written = [], [], []
    step, write = loop.Trainer.step, Saver._write

    def counted(trainer, batch):
        result = step(trainer, batch)
        steps.append(trainer.progress.step)
        return result

    def slow(saver, tensors, progress):
        before = len(steps)
        while progress.step == 3 and len(steps) < before + 2:
            time.sleep(0.01)  # until training has taken two more steps
        writes.append((progress.step, list(written)))
        write(saver, tensors, progress)
        written.append(progress.step)

    monkeypatch.setattr(loop.Trainer, "step", counted)
    monkeypatch.setattr(Saver, "_write", slow)
    train(settings(tmp_path / "run", async_save=True, keep_last=0))
    assert writes == [(3, []), (6, [3]), (8, [3, 6])]


def test_an_async_save_that_fails_raises_at_the_next_save(settings, tmp_path, monkeypatch):
    def fail(saver, tensors, progress):
        raise UserError("the disk is full")

    monkeypatch.setattr(Saver, "_write", fail)
    with pytest.raises(UserError, match="the disk is full"):
        train(settings(tmp_path / "run", async_save=True))


def test_checkpoints_at_the_retain_interval_are_never_removed(settings, tmp_path):
    train(settings(tmp_path / "run", keep_last=1, save_interval=1, save_retain_interval=3))
    assert sorted(p.name for p in (tmp_path / "run").glob("*step*")) == [
        "step_00000003",
        "step_00000006",
        "step_00000008",
    ]


def test_the_step_to_start_from_can_be_chosen(finished, settings, tmp_path):
    longer = {
        "load": str(finished[0]),
        "train_iters": 10,
        "lr_decay_style": "constant",
        "log_interval": 1,
        "eval_iters": 0,
        "split": "90,10,0",
    }
    manifest = train(settings(tmp_path / "early", ckpt_step=3, **longer))
    assert [step for step, _ in manifest["curve"]] == [4, 5, 6, 7, 8, 9, 10]
    with pytest.raises(
        UserError, match="has no checkpoint of step 4, only of 3, 6, 8; choose one with --ckpt-step"
    ):
        train(settings(tmp_path / "never", ckpt_step=4, **longer))
    with pytest.raises(UserError, match=r"checkpoint.ckpt_step needs --load"):
        settings(tmp_path / "never", ckpt_step=3)
    with pytest.raises(UserError, match="--load is --save itself"):
        train(settings(tmp_path / "never", load=str(tmp_path / "never"), ckpt_step=3))


def test_a_run_can_begin_with_new_moments_and_changed_optimizer_settings_are_reported(
    finished, settings, tmp_path, capsys
):
    how = {"load": str(finished[0]), "train_iters": 10, "lr_warmup_iters": 0, "log_interval": 1}
    manifest = train(settings(tmp_path / "new", no_load_optim=True, lr=2e-2, **how))
    assert [step for step, _ in manifest["curve"]] == [9, 10]
    state = json.loads((tmp_path / "new" / "step_00000010" / "state.json").read_text())
    assert state["updates"] == 2
    assert (
        "was trained with other settings of the optimizer (lr 0.01 there, 0.02 here; lr_warmup_iters 2 there,"
        " 0 here); this run uses those here" in capsys.readouterr().err
    )
    assert manifest["curve"] != train(settings(tmp_path / "old", lr=2e-2, **how))["curve"]
    train(settings(tmp_path / "theirs", use_checkpoint_opt_param_scheduler=True, lr=2e-2, **how))
    train(settings(tmp_path / "same", **{**how, "lr_warmup_iters": 2}))
    curves = [
        [
            line
            for line in map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
            if "lr" in line
        ]
        for name in ("theirs", "same")
    ]
    assert [(c["loss"], c["lr"]) for c in curves[0]] == [(c["loss"], c["lr"]) for c in curves[1]]


def test_a_checkpoint_without_moments_has_none_and_resuming_from_it_says_so(
    settings, finished, tmp_path, capsys
):
    save = tmp_path / "run"
    train(settings(save, no_save_optim=True, exit_interval=5))
    assert not any(
        name.startswith("exp_avg") for name in inspect(InspectConfig(checkpoint=str(save)))["tensors"]
    )
    with pytest.raises(
        UserError,
        match=(
            "step_00000005: has no exp_avg for the optimizer; give --no-load-optim to begin with new moments"
        ),
    ):
        train(settings(tmp_path / "other", load=str(save), train_iters=10))
    assert "finished" in train(settings(save, no_save_optim=True))
    assert "was saved with --no-save-optim; the optimizer starts with new moments" in capsys.readouterr().err


def test_exit_on_missing_checkpoint_ends_a_run_that_has_none_to_resume_from(settings, tmp_path):
    with pytest.raises(
        UserError,
        match=(
            "run: has no checkpoint to resume from, and --exit-on-missing-checkpoint is given; leave it out"
            " to start a new run"
        ),
    ):
        train(settings(tmp_path / "run", exit_on_missing_checkpoint=True))
    train(settings(tmp_path / "run", exit_interval=4))
    assert "finished" in train(settings(tmp_path / "run", exit_on_missing_checkpoint=True))


def test_momentum_of_sgd_is_resumed(settings, tmp_path):
    how = {"optimizer": "sgd", "lr": 0.5, "keep_last": 0}
    whole = train(settings(tmp_path / "whole", **how))
    assert whole["train_loss"] < whole["curve"][0][1]
    while "finished" not in (cut := train(settings(tmp_path / "cut", exit_interval=3, **how))):
        pass
    assert cut["curve"] == whole["curve"]
    assert content(tmp_path / "cut" / "step_00000008") == content(tmp_path / "whole" / "step_00000008")


def test_the_balancing_bias_of_experts_is_saved_and_resumed(tree, tmp_path):
    """It is a buffer, not a parameter."""

    def run(save, **settings):
        settings = tree(save, **settings)
        settings["model"] |= {
            "num_experts": 4,
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_bias_update_rate": 0.1,
        }
        return train(build(loop.TrainConfig, ("test", settings)))

    whole = run(tmp_path / "whole")
    biases = [
        b
        for name, b in open_checkpoint(tmp_path / "whole").load_model().named_buffers()
        if name.endswith("expert_bias")
    ]
    assert len(biases) == 2
    assert any(b.any() for b in biases)
    while "finished" not in (cut := run(tmp_path / "cut", exit_interval=3)):
        pass
    assert cut["curve"] == whole["curve"]


def test_a_checkpoint_with_settings_of_another_version_loads_and_names_them(
    finished, copy, settings, tmp_path, capsys
):
    step = newest_whole(copy).path
    tree = yaml.safe_load((step / "config.yaml").read_text())
    tree["model"]["moe_lost"], tree["optimizer"]["adam_lost"] = 3, True
    (step / "config.yaml").write_text(yaml.safe_dump(tree))
    state = json.loads((step / "state.json").read_text())
    for file in state["files"]:
        if file["name"] == "config.yaml":
            file["bytes"], file["xxh3"] = (
                (step / "config.yaml").stat().st_size,
                manifest.file_digest(step / "config.yaml"),
            )
    (step / "state.json").write_text(json.dumps(state))
    assert open_checkpoint(copy).config == open_checkpoint(finished[0]).config
    assert "moe_lost = 3: no setting of this version of mt, and left out" in capsys.readouterr().err
    train(
        settings(tmp_path / "longer", load=str(copy), use_checkpoint_opt_param_scheduler=True, train_iters=10)
    )
    assert "adam_lost = True: no setting" in capsys.readouterr().err
