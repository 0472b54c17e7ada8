"""ParallelConfig and the process groups: sizes that are refused, and the axes of every rank."""

import pytest
import torch.distributed as dist

from mt.core.config import UserError, build
from mt.tests.train.parallel.jobs import mesh_collectives
from mt.train.parallel.mesh import ParallelConfig, check_sizes, pretend


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pipeline_schedule": "gpipe"},
            "need several pipeline stages, and there is one; give --pipeline-model-parallel-size",
        ),
        (
            {
                "pipeline_model_parallel_size": 2,
                "pipeline_schedule": "zero-bubble",
                "data_parallel_sharding": "full",
            },
            "keeps unsharded gradients until the end of a step",
        ),
        (
            {"pipeline_model_parallel_size": 2, "num_layers_per_virtual_pipeline_stage": 0},
            "num_layers_per_virtual_pipeline_stage = 0 must be at least 1",
        ),
        ({"pipeline_model_parallel_size": 0}, "pipeline_model_parallel_size = 0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        build(ParallelConfig, ("test", settings))


@pytest.mark.parametrize(
    ("parallel", "world", "message"),
    [
        (
            {"tensor_model_parallel_size": 4, "context_parallel_size": 2},
            12,
            (
                r"12 processes cannot be divided into replicas of parallel.tensor_model_parallel_size = 4 x"
                r" parallel.context_parallel_size = 2 = 8; start 16 with"
            ),
        ),
        ({"tensor_model_parallel_size": 2}, 1, r"^1 process cannot be divided into"),
        (
            {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 4},
            6,
            (
                r"parallel.context_parallel_size = 1 x parallel.pipeline_model_parallel_size = 4 = 8; start 8"
                r" with"
            ),
        ),
        (
            {"expert_model_parallel_size": 4, "tensor_model_parallel_size": 2},
            4,
            (
                r"parallel.expert_model_parallel_size = 4 does not divide the 2 data- and context-parallel"
                r" processes \(4 / parallel.tensor_model_parallel_size = 2\); use one of 1, 2"
            ),
        ),
    ],
)
def test_a_number_of_processes_that_the_sizes_do_not_divide_is_refused(parallel, world, message):
    with pytest.raises(UserError, match=message):
        check_sizes(ParallelConfig(**parallel), world)


def test_sequence_parallel_without_tensor_parallelism_is_refused():
    with pytest.raises(
        UserError,
        match="sequence_parallel divides sequences over tensor-parallel processes, and there is one",
    ):
        build(ParallelConfig, ("test", {"sequence_parallel": True}))


def test_a_rank_has_the_sizes_ranks_and_groups_of_every_axis():
    """Worked by hand for 16 processes: 2 stages x 2 replicas x 2 context- x 2 tensor-parallel ranks."""
    config = ParallelConfig(
        tensor_model_parallel_size=2,
        context_parallel_size=2,
        pipeline_model_parallel_size=2,
        expert_model_parallel_size=2,
    )
    with pretend(config, 16, rank=13) as mesh:  # 13 = 1 x 8 + 1 x 4 + 0 x 2 + 1
        places = {name: (getattr(mesh, name).size, getattr(mesh, name).rank) for name in AXES}
        assert places == {
            "pp": (2, 1),
            "dp": (2, 1),
            "cp": (2, 0),
            "tp": (2, 1),
            "dp_cp": (4, 2),
            "ep": (2, 0),
        }
        groups = {name: dist.get_process_group_ranks(getattr(mesh, name).group) for name in AXES}
        assert groups == {
            "pp": [5, 13],
            "dp": [9, 13],
            "cp": [13, 15],
            "tp": [12, 13],
            "dp_cp": [9, 11, 13, 15],
            "ep": [13, 15],
        }
    assert not dist.is_initialized()


AXES = ("pp", "dp", "cp", "tp", "dp_cp", "ep")


def test_one_process_needs_no_torch_distributed():
    with pretend(ParallelConfig(), 1) as mesh:
        assert not dist.is_initialized()
        assert (mesh.dp.size, mesh.dp_cp.size, mesh.tp.size, mesh.dense) == (1, 1, 1, None)
        assert mesh.any_rank([]) is False
        assert mesh.any_rank(15) is True
        assert mesh.on_rank_0(lambda: 7) == 7
        assert mesh.all_gather_object("a") == ["a"]
        assert mesh.all_gather_object_pp("a") == ["a"]
        assert mesh.broadcast_object("a") == "a"


def test_collectives_of_a_mesh_reach_the_ranks_that_they_name(pool):
    """Rank r of 4, as 2 pipeline stages of 2 replicas: rank r is at stage r // 2 and replica r % 2."""
    for rank, found in enumerate(pool.run(mesh_collectives, 4, {"pipeline_model_parallel_size": 2})):
        stage, replica = divmod(rank, 2)
        assert found == {
            "sum": 0 + 1 + 2 + 3,
            "sum_dp_cp": 4 * stage + 1,
            "sum_pp": 2 * replica + 2,
            "any": [True, False],
            "gathered": [0, 1, 2, 3],
            "gathered_pp": [replica, replica + 2],
            "from_0": 0,
            "on_rank_0": "done" if rank == 0 else None,
            "axes": ((2, stage), (2, replica)),
        }
