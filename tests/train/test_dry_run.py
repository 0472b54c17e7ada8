import pytest

from mt.core.config import UserError, build
from mt.tests.train.parallel_jobs import VOCABULARY
from mt.train.loop import train
from mt.train.plan import PlanConfig, Planner, resolve_shape

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"family": "t5", "max_position_embeddings": 128},
        pytest.param({"family": "bert"}, marks=pytest.mark.slow),
        pytest.param({"num_experts": 4}, marks=pytest.mark.slow),
    ],
)
def test_a_dry_run_runs_a_step_of_the_first_and_the_last_stage(settings, tmp_path, model):
    parallel = {
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
        "pipeline_model_parallel_size": 2,
        "pipeline_schedule": "zero-bubble",
    }
    shape = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": VOCABULARY, **model}
    found = train(
        settings(
            tmp_path / "run",
            global_batch_size=64,
            bf16=True,
            model=shape,
            dry_run=True,
            world_size=16,
            parallel=parallel,
        )
    )
    assert (found["tp"], found["pp"], found["dp"]) == (2, 2, 4)
    assert "on the first stage and the last" in found["text"]
    assert 0 < found["local_parameters"] < found["parameters"] / 8


def test_a_dry_run_reports_the_parameters_and_bytes_of_the_plan(settings, tmp_path):
    values = {"global_batch_size": 64, "vocab_size": VOCABULARY, "hidden_size": 256}
    found = train(
        settings(
            tmp_path / "run",
            **values,
            dry_run=True,
            world_size=16,
            parallel={"tensor_model_parallel_size": 4, "sequence_parallel": True},
        )
    )
    assert (found["tp"], found["dp"], found["micro_batches"], found["steps"]) == (4, 4, 8, 8)
    assert "from the first layer to the optimizer's step" in found["text"]
    tree = {
        "model": {"num_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": VOCABULARY},
        "data": {"seq_length": 16},
    }
    config = build(
        PlanConfig,
        (
            "test",
            tree
            | {
                "train": {"micro_batch_size": 2, "global_batch_size": 64},
                "world_size": 16,
                "parallel": {"tensor_model_parallel_size": 4, "sequence_parallel": True},
            },
        ),
    )
    planner = Planner(config, resolve_shape(config))
    estimate = planner.estimate(planner.given())
    assert found["parameters"] == planner.total_parameters
    assert found["moments"] == estimate.moments
    assert found["weights"] == 4 * found["local_parameters"]
    # what Megatron's checkpoints call the parameters of a rank: a quarter of the matrices, all of the norms
    assert found["parameters"] / 4 < found["computed_parameters"] < found["parameters"] / 3.9
    assert found["local_parameters"] == pytest.approx(found["computed_parameters"] / 4, rel=0.01)
    assert "its part of the optimizer's state" in found["text"]
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_a_dry_run_stops_where_shapes_depend_on_data(settings, tmp_path):
    experts = {
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_experts": 4,
            "vocab_size": VOCABULARY,
        }
    }
    found = train(
        settings(
            tmp_path / "run",
            **experts,
            global_batch_size=16,
            dry_run=True,
            world_size=8,
            parallel={"expert_model_parallel_size": 4},
        )
    )
    assert "as far as the first exchange between experts" in found["text"]
    assert found["ep"] == 4


def test_a_dry_run_refuses_what_the_job_would_refuse(settings, tmp_path):
    with pytest.raises(
        UserError, match="world_size = 16 is for --dry-run; the processes of a run are torchrun's"
    ):
        train(settings(tmp_path / "run", world_size=16))
    with pytest.raises(UserError, match="--dry-run needs the number of processes of the job, --world-size N"):
        train(settings(tmp_path / "run", dry_run=True))
    with pytest.raises(
        UserError, match=r"tensor_model_parallel_size = 8 does not divide model\.num_attention_heads = 4"
    ):
        train(
            settings(
                tmp_path / "run",
                dry_run=True,
                world_size=16,
                vocab_size=VOCABULARY,
                parallel={"tensor_model_parallel_size": 8},
            )
        )
    with pytest.raises(UserError, match=r"train\.global_batch_size = 8 is not a multiple"):
        train(settings(tmp_path / "run", dry_run=True, world_size=16, vocab_size=VOCABULARY))
