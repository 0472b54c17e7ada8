"""Retro trained on the output of `mt retro neighbors`: batches, runs, resuming, and starting from a GPT."""

import json

import pytest
import torch

from mt.core import config
from mt.core.config import UserError
from mt.indexed.neighbors import SampleNeighbors
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.sample_neighbors import NeighborsConfig, neighbors
from mt.tests.retro.small_databases import texts, write
from mt.tests.train.parallel_jobs import run_mt_train
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.batches import Batches, open_neighbors
from mt.train.checkpoint.open import open_checkpoint
from mt.train.config import TrainConfig
from mt.train.loop import train
from mt.train.model.config import ModelConfig
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import build_samples
from mt.train.model.inputs import PackingConfig
from mt.train.model.retro import is_retrieval
from mt.train.parallel.mesh import Mesh

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]
M, SEQ, STEPS, BATCH = 16, 64, 6, 4
RETRO = {"retro_add_retriever": True, "retro_chunk_length": M}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two corpora of bytes, `a` and `b`; their database `db`; the neighbours `near` of their blend."""
    folder = tmp_path_factory.mktemp("retro")
    for seed, name in enumerate("ab"):
        write(folder / name, texts(60, seed, 8))
    build_db(
        config.build(
            BuildDbConfig,
            (
                "test",
                {
                    "data_path": [str(folder / "a"), str(folder / "b")],
                    "output": str(folder / "db"),
                    "tokenizer_type": "ByteLevelTokenizer",
                    "chunk_length": M,
                    "num_neighbors": 2,
                    "workers": 1,
                },
            ),
        )
    )
    neighbors(
        config.build(
            NeighborsConfig,
            (
                "test",
                {
                    "data_path": data(folder),
                    "split": "80,20",
                    "seq_length": SEQ,
                    "db": str(folder / "db"),
                    "output": str(folder / "near"),
                    "train_samples": STEPS * BATCH,
                    "valid_samples": BATCH,
                    "num_neighbors": 2,
                    "workers": 1,
                },
            ),
        )
    )
    return folder


def data(folder):
    return ["2", str(folder / "a"), "1", str(folder / "b")]


def run(folder, save, *, model=RETRO, **leaves):
    tree = {
        "model": {"num_layers": 6, "hidden_size": 32, "num_attention_heads": 4, **model},
        "data": {
            "data_path": data(folder),
            "seq_length": SEQ,
            "split": "80,20",
            **({"retro_project_dir": str(folder / "near")} if model else {}),
        },
        "tokenizer_type": "ByteLevelTokenizer",
        "lr": 3e-3,
        "lr_warmup_iters": 2,
        "save": str(save),
        "log_interval": 1,
        "micro_batch_size": 2,
        "global_batch_size": BATCH,
        "train_iters": STEPS,
        "eval_interval": 3,
        "eval_iters": 1,
        **leaves,
    }
    return config.build(TrainConfig, ("test", tree))


def log(save):
    return [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]


def losses(save):
    return [(line["step"], line.get("loss", line.get("valid_loss"))) for line in log(save)]


def weights(save):
    return dict(open_checkpoint(save).load_model().named_parameters())


@pytest.fixture(scope="module")
def finished(folder):
    """(directory, manifest) of a whole run."""
    save = folder / "finished"
    return save, train(run(folder, save))


def test_a_micro_batch_has_the_neighbours_of_its_samples_of_a_blend(folder):
    shape = ModelConfig(num_layers=6, **RETRO)
    settings = SampleConfig(
        data_path=tuple(data(folder)), seq_length=SEQ, split="80,20", retro_project_dir=str(folder / "near")
    )
    dataset = build_samples(
        shape, settings, load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer")), (STEPS * BATCH, BATCH, 0)
    )[0]
    how = {
        "micro_batch_size": 2,
        "vocab_size": 300,
        "packing": PackingConfig(),
        "eod": 0,
        "neighbors": open_neighbors(shape, settings, dataset),
    }
    found = SampleNeighbors(folder / "near", dataset)
    for rank in range(2):
        (micro,) = Batches(dataset, mesh=Mesh(rank, 2, torch.device("cpu")), **how).global_batch(8, 4)
        for row in range(2):
            tokens, mask = found.tokens(8 + 2 * rank + row, 2)
            assert micro.neighbors[row].shape == (SEQ // M, 2, 2 * M)
            assert torch.equal(micro.neighbors[row], torch.from_numpy(tokens))
            assert torch.equal(micro.neighbor_mask[row], torch.from_numpy(mask))
            assert micro.tokens[row].tolist() == dataset[8 + 2 * rank + row][:-1].tolist()
    prefetched = list(Batches(dataset, mesh=Mesh(0, 1, torch.device("cpu")), **how).over([(0, 4), (4, 4)]))
    assert torch.equal(prefetched[1][1].neighbors[0], torch.from_numpy(found.tokens(6, 2)[0]))


def test_a_run_learns_and_its_checkpoint_loads_as_a_retro(finished):
    save, manifest = finished
    assert manifest["curve"][-1][1] < manifest["curve"][0][1] - 0.3
    checkpoint = open_checkpoint(save)
    model = checkpoint.load_model()
    assert checkpoint.config.retro_add_retriever
    assert model.layers[5].cross.encoder is not None
    assert manifest["valid_loss"] > 0


def test_a_stopped_run_resumes_to_the_same_losses_and_weights(folder, finished, tmp_path):
    save = tmp_path / "run"
    train(run(folder, save, exit_interval=2))
    train(run(folder, save, exit_interval=2))
    train(run(folder, save))
    assert losses(save) == losses(finished[0])
    assert all(
        torch.equal(a, b) for a, b in zip(weights(save).values(), weights(finished[0]).values(), strict=True)
    )


@pytest.mark.slow  # 20 s of a CPU; parallel/test_parallelize.py has quick layouts of Retro
def test_two_processes_with_recomputation_give_the_losses_of_one(pool, folder, tmp_path):
    off = {"retro_encoder_hidden_dropout": 0.0, "retro_encoder_attention_dropout": 0.0}
    train(run(folder, tmp_path / "one", model=RETRO | off))
    for name, how in {
        "dp2": {"data_parallel_sharding": "full", "recompute_granularity": "full"},
        "tp2": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    }.items():
        pool.run(run_mt_train, 2, run(folder, tmp_path / name, model=RETRO | off, **how))
        for (_, one), (_, two) in zip(losses(tmp_path / "one"), losses(tmp_path / name), strict=True):
            assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize(
    "precision", [{}, pytest.param({"bf16": True}, marks=pytest.mark.slow)], ids=["float32", "bfloat16"]
)
def test_retro_starts_from_a_gpt_and_trains_it_or_keeps_it_frozen(folder, tmp_path, precision):
    gpt = tmp_path / "gpt"
    train(run(folder, gpt, model={}, train_iters=3))
    manifest = train(
        run(folder, tmp_path / "frozen", load=str(gpt), finetune=True, retro_freeze_decoder=True, **precision)
    )
    before, after = weights(gpt), weights(tmp_path / "frozen")
    assert {name for name in after if not is_retrieval(name)} == set(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert manifest["curve"][-1][1] < manifest["curve"][0][1]
    for exit_interval in (3, None):
        train(
            run(
                folder,
                tmp_path / "stopped",
                load=str(gpt),
                finetune=True,
                retro_freeze_decoder=True,
                exit_interval=exit_interval,
                **precision,
            )
        )
    resumed = weights(tmp_path / "stopped")
    assert all(torch.equal(after[name], resumed[name]) for name in after)
    thaw = {"load": str(tmp_path / "stopped" / "step_00000003"), **precision}
    with pytest.raises(
        UserError,
        match=(
            r"step_0*3: has no exp_avg\.\S+, as a run leaves it that did not train all weights; give"
            r" --no-load-optim"
        ),
    ):
        train(run(folder, tmp_path / "thawed", **thaw))
    if not precision:
        train(run(folder, tmp_path / "free", load=str(gpt), finetune=True))
        free = weights(tmp_path / "free")
        assert train(run(folder, tmp_path / "thawed", **thaw, no_load_optim=True))["curve"][-1][0] == STEPS
        assert any(not torch.equal(before[name], free[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retro_project_dir": None}, r"give --retro-project-dir, the output of `mt retro neighbors`"),
        (
            {"seq_length": 72},
            r"data.seq_length = 72 is not a multiple of model.retro_chunk_length = 16; use 64 or 80",
        ),
        (
            {"retro_chunk_length": 32},
            (
                r"has neighbours of chunks of 16 tokens, and model.retro_chunk_length = 32; give"
                r" --retro-chunk-length 16"
            ),
        ),
        ({"retro_num_neighbors": 3}, r"3 neighbours are requested, but every chunk has 2"),
        ({"train_iters": 60}, r"near"),
        ({"seed": 7}, r"near"),
        ({"retro_freeze_decoder": True}, r"needs a trained GPT: give --load with --finetune"),
        ({"reset_position_ids": True}, r"neighbours are those of a sample's plain tokens"),
        (
            {"max_position_embeddings": 64, "retro_chunk_length": 64},
            r"is less than a neighbour's 2 x model.retro_chunk_length = 128 tokens; raise it",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_built(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(run(folder, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_starting_from_another_kind_of_model_needs_the_right_settings(folder, finished, tmp_path):
    gpt = tmp_path / "gpt"
    train(run(folder, gpt, model={}, train_iters=3))
    with pytest.raises(
        UserError,
        match=r"holds a GPT without retrieval, which Retro can begin with; give --finetune to say so",
    ):
        train(run(folder, tmp_path / "run", load=str(gpt)))
    with pytest.raises(UserError, match=r"holds another model: .*cross.*absent here"):
        train(run(folder, tmp_path / "run", model={}, load=str(finished[0]), finetune=True))
    with pytest.raises(
        UserError, match=r"retro_project_dir is for models with retrieval; give --retro-add-retriever too"
    ):
        train(run(folder, tmp_path / "run", model={}, retro_project_dir=str(folder / "near")))
