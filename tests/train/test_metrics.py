import importlib.util
import json
import math
import sys
import types

import pytest
import torch

from mt.core.config import UserError
from mt.train.checkpoint.open import open_checkpoint
from mt.train.loop import train
from mt.train.metrics import LogConfig, Rates, RunLog, peak_memory, whole_lines
from mt.train.model.flops import Flops

pytestmark = pytest.mark.usefixtures("one_thread")
LINE = {
    "samples": 8,
    "tokens": 64,
    "loss": 2.0,
    "lr": 1e-3,
    "grad_norm": 1.0,
    "skipped": 0,
    "seconds": 2.0,
    "tokens_per_second": 32.0,
}


def test_rates_are_those_of_the_interval_per_device():
    rates = Rates(Flops(1000.0, 800.0), devices=2, peak=4000.0)
    for _ in range(4):
        rates.count(samples=5, tokens=50)
        rates.time(seconds=0.5, waited=0.1)
    taken = rates.take()
    assert {k: v for k, v in taken.items() if k != "memory_bytes"} == pytest.approx(
        {
            "seconds": 2.0,
            "tokens_per_second": 100.0,
            "data_wait": 0.2,
            "flops_per_second": 5000.0,
            "mfu": 1.25,
            "mfu_causal": 1.0,
        }
    )
    assert taken["memory_bytes"] == peak_memory() > 10_000_000
    rates.count(1, 10)
    rates.time(1.0, 0.0)
    assert rates.take()["tokens_per_second"] == 10.0


def test_the_time_that_is_left_is_counted_from_the_first_step_on(tmp_path, capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mt.train.metrics.time.monotonic", lambda: clock[0])
    log = RunLog(tmp_path, LogConfig(), step=0, total_steps=9, settings={}, total_samples=90)
    assert log.time_left(0) is None
    for step, clock[0] in ((1, 60.0), (2, 65.0), (4, 75.0), (9, 100.0)):
        log.step_done(10 * step)
        log.training(step, **{**LINE, "samples": 10 * step})
    clock[0] = 70.0
    assert log.time_left(30) == "30 s"  # between two lines, for the heartbeat
    log.close()
    assert [line.split("tokens/s  ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "elapsed 1 min",  # with the compilation
        "elapsed 1 min 5 s  left 35 s",  # 5 s a step
        "elapsed 1 min 15 s  left 25 s",
        "elapsed 1 min 40 s",
    ]


def test_without_a_known_peak_there_is_no_mfu():
    rates = Rates(Flops(1.0, 1.0), 1, None)
    rates.time(1.0, 0.0)
    assert "mfu" not in rates.take()


def test_a_log_is_truncated_to_the_resumed_step_and_an_incomplete_line_is_removed(tmp_path, capsys):
    log = RunLog(tmp_path, LogConfig(), step=0, total_steps=9, settings={})
    for step in (1, 2, 3):
        log.training(step, **LINE, mfu=0.5)
        log.validation(step, 3.0)
    log.close()
    assert (
        "step 2/9  loss 2.0000  lr 1.00e-03  grad norm 1.00  32 tokens/s  MFU 50.0%  elapsed 0 s"
        in capsys.readouterr().err
    )
    with open(log.path, "a") as file:
        file.write('{"step": 2, "lo')
    again = RunLog(tmp_path, LogConfig(), step=2, total_steps=9, settings={})
    assert again.curve("loss") == [[1, 2.0], [2, 2.0]]
    assert again.tokens_per_second() == 32.0
    again.training(3, **{**LINE, "loss": None})
    again.close()
    assert again.curve("loss") == [[1, 2.0], [2, 2.0]]
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == [1, 1, 2, 2, 3]
    assert "loss none" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"5",
        b"null",
        b"{}",
        b'{"step": "1"}',
        b"[" * 10**6,
        b"\xff\xfe",
        b'{"step": ' + b"1" * 5000 + b"}",
        b'{"step": -1}',
        b'{"step": 1, "loss": "1"}',
        b'{"step": 1, "valid_loss": []}',
        b'{"step": 1, "seconds": 0, "tokens_per_second": 1}',
        b'{"step": 1, "seconds": 1, "tokens_per_second": {}}',
        b'{"step": 1, "of": ' + b"[" * 100 + b"]" * 100 + b"}",
        b" " * (1 << 24) + b'{"step": 2}',
    ],
)
def test_a_log_ends_at_the_first_line_that_no_run_writes(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert whole_lines(path) == [{"step": 1}]


def test_a_run_logs_the_documented_fields(finished):
    line = json.loads((finished[0] / "log.jsonl").read_text().splitlines()[0])
    assert set(line) == {
        "step",
        "samples",
        "tokens",
        "loss",
        "lr",
        "weight_decay",
        "grad_norm",
        "skipped",
        "seconds",
        "tokens_per_second",
        "data_wait",
        "flops_per_second",
        "memory_bytes",
    }, "and no MFU, because the makers of CPUs give no peak"
    assert 0 <= line["data_wait"] < 1


def test_a_mixture_logs_the_load_of_its_busiest_expert(tree, tmp_path):
    from mt.core.config import build
    from mt.train.config import TrainConfig

    settings = tree(tmp_path / "run", train_iters=2, log_interval=1, lr_warmup_iters=0)
    settings["model"] |= {"num_experts": 4, "moe_aux_loss_coeff": 0.1}
    train(build(TrainConfig, ("test", settings)))
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert set(line["experts"]) == {"layers.0.ffn", "layers.1.ffn"}
    assert all(1.0 <= load <= 4.0 for load in line["experts"].values())


def test_weights_and_biases_gets_the_numbers_and_a_resumed_run_keeps_its_id(settings, tmp_path, monkeypatch):
    """With a fake module in place of the package, which needs a server."""
    opened, logged = [], []

    def init(**arguments):
        opened.append(arguments)
        return types.SimpleNamespace(
            id="abc", log=lambda values, step: logged.append((step, values)), finish=lambda: None
        )

    wandb = types.ModuleType("wandb")
    wandb.__spec__ = types.SimpleNamespace(name="wandb")
    wandb.init, wandb.errors = init, types.SimpleNamespace(Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for _ in range(2):
        train(settings(tmp_path / "run", wandb_project="p", exit_interval=4))
    assert [(a["project"], a["name"], a["id"]) for a in opened] == [("p", "run", None), ("p", "run", "abc")]
    assert opened[0]["config"]["optimizer"]["lr"] == 1e-2
    assert [step for step, values in logged if "loss" in values] == [2, 4, 6, 8]


def test_what_megatrons_flags_ask_for_is_logged(settings, tmp_path, monkeypatch):
    """In log.jsonl, in TensorBoard's directory, and in MLflow, whose module is stood in for."""
    logged, started = [], []
    module = types.ModuleType("mlflow")
    module.__spec__ = types.SimpleNamespace(name="mlflow")
    module.exceptions = types.SimpleNamespace(MlflowException=RuntimeError)
    module.set_tracking_uri = module.set_experiment = module.log_params = lambda *_: None
    module.log_metrics = lambda values, step: logged.append((step, values))
    module.end_run = lambda: None

    def start_run(run_id, run_name):
        started.append((run_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))

    module.start_run = start_run
    monkeypatch.setitem(sys.modules, "mlflow", module)
    asked = {
        "log_params_norm": True, "log_num_zeros_in_grad": True, "timing_log_level": 1, "log_interval": 1,
        "log_timers_to_tensorboard": True, "log_validation_ppl_to_tensorboard": True, "train_iters": 2,
        "lr_warmup_iters": 0,
        "tensorboard_dir": str(tmp_path / "board"), "mlflow_experiment": "e",
        "eval_iters": 1,
    }  # fmt: skip
    config = settings(tmp_path / "run", **asked)
    train(config)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "loss" in line]
    weights = open_checkpoint(str(tmp_path / "run")).load_model().parameters()
    norm = sum(weight.detach().double().square().sum() for weight in weights) ** 0.5
    assert trained[-1]["params_norm"] == pytest.approx(norm.item(), rel=1e-6)
    assert trained[-1]["num_zeros"] > 0, "rows of tokens that do not occur"
    assert 0 < trained[-1]["timers"]["forward_backward"] < trained[-1]["timers"]["step"]
    assert list((tmp_path / "board").glob("events*"))
    assert started == [(None, "run")]
    names = {name for _, values in logged for name in values}
    assert {"loss", "params_norm", "num_zeros", "timers/optimizer", "valid_ppl"} <= names
    (valid,) = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert [v["valid_ppl"] for _, v in logged if "valid_ppl" in v] == [pytest.approx(math.exp(valid))]


def test_impossible_settings_are_refused():
    with pytest.raises(
        UserError, match=r"log.profile_step_start = 3 must be before log.profile_step_end = 3"
    ):
        LogConfig(profile=True, profile_step_start=3, profile_step_end=3)
    with pytest.raises(UserError, match=r"log.wandb_exp_name needs --wandb-project"):
        LogConfig(wandb_exp_name="x")
    with pytest.raises(UserError, match=r"log.mlflow_tracking_uri needs --mlflow-experiment"):
        LogConfig(mlflow_tracking_uri="x")
    if importlib.util.find_spec("mlflow") is None:
        with pytest.raises(UserError, match="install it with: pip install mlflow"):
            LogConfig(mlflow_experiment="x")
    if "wandb" not in sys.modules:
        with pytest.raises(
            UserError, match=r"log.wandb_project needs the package wandb; install it with: pip install wandb"
        ):
            LogConfig(wandb_project="p")


@pytest.mark.gpu
def test_on_a_gpu_peak_memory_is_what_torch_reserved():
    torch.ones(1 << 20, device="cuda")
    assert peak_memory() == torch.cuda.max_memory_reserved() > 0
