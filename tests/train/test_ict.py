"""Training a biencoder on the inverse cloze task: batches, runs, starting from a BERT, refused settings."""

import math

import numpy as np
import pytest
import torch

from mt.core.config import UserError, build
from mt.indexed.format import IndexedWriter
from mt.tests.train.parallel_jobs import model_config
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.batches import Batches
from mt.train.checkpoint.hf_settings import config_to_hf
from mt.train.checkpoint.open import open_checkpoint
from mt.train.dry_run import dry_run
from mt.train.loop import TrainConfig, train
from mt.train.memory_estimate import Cut, count_parts
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import build_model, build_samples
from mt.train.model.inputs import PackingConfig, collate_pairs
from mt.train.model.training_cost import training_flops
from mt.train.parallel.mesh import Mesh

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = Mesh(0, 1, torch.device("cpu"))


# Runs

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(115))]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(prefix of documents, prefix of their titles, settings of their tokenizer).

    Each document has sentences about one topic of 4 words.
    """
    folder = tmp_path_factory.mktemp("topics")
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    random = np.random.RandomState(0)
    for name, per_document, length in (("text", 4, 8), ("title", 1, 3)):
        tokens = [
            5 + 4 * (document % 25) + random.randint(4, size=length)
            for document in range(200)
            for _ in range(per_document)
        ]
        writer = IndexedWriter(folder / f"{name}_sentence", np.uint16, folder / f"work-{name}")
        writer.add(np.concatenate(tokens), np.full(200 * per_document, length), np.full(200, per_document))
        writer.finish()
    return (
        str(folder / "text_sentence"),
        str(folder / "title_sentence"),
        {"tokenizer_type": "BertWordPieceLowerCase", "vocab_file": str(folder / "vocab.txt")},
    )


def run(corpus, folder, **more):
    text, titles, tokenizer = corpus
    tree = {
        "model": {
            "family": "ict",
            "num_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 4,
            **more.pop("model", {}),
        },
        "data": {
            "data_path": [text],
            "titles_data_path": [titles],
            "seq_length": 32,
            "split": "90,10,0",
            **more.pop("data", {}),
        },
        "tokenizer": tokenizer,
        "optimizer": {"lr": 3e-3, "lr_warmup_iters": 2},
        "train": {
            "micro_batch_size": 8,
            "global_batch_size": 16,
            "train_iters": 30,
            "eval_interval": 30,
            "eval_iters": 1,
        },
        "checkpoint": {"save": str(folder), **more.pop("checkpoint", {})},
        "log": {"log_interval": 5},
        **more,
    }
    return train(build(TrainConfig, ("test", tree)))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ict") / "run"
    return folder, run(corpus, folder)


def test_a_micro_batch_has_the_fields_of_its_samples(corpus):
    text, titles, tokenizer = corpus
    config = SampleConfig(data_path=(text,), titles_data_path=(titles,), seq_length=32, split="100,0,0")
    dataset = build_samples(
        ModelConfig(family="ict"), config, load(TokenizerConfig(**tokenizer)), (20, 0, 0)
    )[0]
    batches = Batches(
        dataset,
        micro_batch_size=3,
        vocab_size=120,
        mesh=HERE,
        packing=PackingConfig(),
        eod=None,
        collate=collate_pairs,
    )
    micro = batches.global_batch(3, 3)[0]
    for row in range(3):
        for ours, theirs in (
            ("tokens", "query_tokens"),
            ("padding_mask", "query_pad_mask"),
            ("encoder_tokens", "context_tokens"),
            ("encoder_padding_mask", "context_pad_mask"),
        ):
            assert getattr(micro, ours)[row].tolist() == dataset[3 + row][theirs].tolist()
    assert micro.loss_mask.tolist() == [1, 1, 1]


def test_a_run_learns_the_block_of_a_query(trained):
    folder, manifest = trained
    assert manifest["curve"][0][1] > math.log(16) - 0.5
    assert manifest["curve"][-1][1] < math.log(16) - 1
    assert manifest["valid_loss"] < math.log(16) - 1
    checkpoint = open_checkpoint(folder)
    model = checkpoint.load_model()
    assert checkpoint.config.family == "ict"
    assert sum(p.numel() for p in model.parameters()) == manifest["parameters"]


def test_a_resumed_run_ends_with_the_same_losses(corpus, trained, tmp_path):
    run(corpus, tmp_path / "run", guard={"exit_interval": 15}, checkpoint={"save_interval": 15})
    assert run(corpus, tmp_path / "run", checkpoint={"save_interval": 15})["curve"] == trained[1]["curve"]


def test_both_towers_start_from_a_bert_of_mt(corpus, tmp_path):
    shape = {"model": {"family": "bert", "bert_binary_head": False}, "data": {"titles_data_path": []}}
    run(corpus, tmp_path / "bert", **shape)
    with pytest.raises(
        UserError,
        match=r"bert.*: holds a BERT, whose weights both towers can begin with; give --finetune to say so",
    ):
        run(corpus, tmp_path / "run", checkpoint={"load": str(tmp_path / "bert")})
    with pytest.raises(
        UserError, match=r"holds another model: embedding.weight is \(128, 32\) there and \(128, 16\) here"
    ):
        run(
            corpus,
            tmp_path / "run",
            model={"hidden_size": 16},
            checkpoint={"load": str(tmp_path / "bert"), "finetune": True},
        )
    run(
        corpus,
        tmp_path / "run",
        model={"biencoder_projection_dim": 400},
        checkpoint={"load": str(tmp_path / "bert"), "finetune": True},
        optimizer={"lr": 1e-12},
        train={"train_iters": 1, "micro_batch_size": 4, "eval_iters": 0},
    )
    bert, ict = (
        open_checkpoint(tmp_path / "bert").load_model(),
        open_checkpoint(tmp_path / "run").load_model(),
    )
    for name, weight in ict.query.bert.named_parameters():
        torch.testing.assert_close(weight, bert.get_parameter(name), atol=1e-9, rtol=0)
        torch.testing.assert_close(weight, ict.context.bert.get_parameter(name), atol=1e-9, rtol=0)
    for tower in ict.towers:  # a BERT has no projection: both towers have the same initial values
        assert tower.projection.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert tower.projection.bias.abs().max() < 1e-9
    assert torch.equal(ict.query.projection.weight.sign(), ict.context.projection.weight.sign())


def test_mistakes_are_named_before_anything_is_built(corpus, tmp_path):
    with pytest.raises(
        UserError, match=r"model.biencoder_projection_dim: for model.family = ict, not bert; leave it out"
    ):
        run(corpus, tmp_path / "run", model={"family": "bert", "biencoder_projection_dim": 16})
    with pytest.raises(
        UserError,
        match=r"data.titles_data_path is for model.family = ict, not bert; leave it out",
    ):
        run(corpus, tmp_path / "run", model={"family": "bert"})
    with pytest.raises(UserError, match="titles_data_path names 2 and the data 1"):
        run(corpus, tmp_path / "run", data={"titles_data_path": [corpus[1], corpus[1]]})
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"Hugging Face has no such model: model.family = ict; keep"):
        config_to_hf(model_config("ict"))


def test_parameters_and_flops_count_both_towers_and_a_dry_run_runs_a_step(corpus):
    one, two = (
        resolve(
            ModelConfig(
                family=family, num_layers=2, hidden_size=32, num_attention_heads=4, bert_binary_head=False
            ),
            vocab_size=120,
            seq_length=32,
        )
        for family in ("bert", "ict")
    )
    blocks = lambda config: sum(
        part.flops for part in count_parts(config, Cut(), seq_length=32, dtype=torch.float32).blocks
    )
    assert blocks(two) == 2 * blocks(one)
    assert training_flops(two, 32).full == 6 * blocks(one)
    model = build_model(two)
    parts = count_parts(two, Cut(), seq_length=32, dtype=torch.float32)
    assert sum(p.parameters for p in (parts.first, *parts.blocks, parts.last)) == sum(
        p.numel() for p in model.parameters()
    )
    shape = {
        "model": {
            "family": "ict",
            "num_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "vocab_size": 120,
        }
    }
    tree = {
        **shape,
        "data": {"data_path": ["nowhere"], "seq_length": 32},
        "train": {"train_iters": 3},
        "checkpoint": {"save": "nowhere"},
        "dry_run": True,
        "world_size": 8,
    }
    facts = dry_run(build(TrainConfig, ("test", tree)))
    assert facts["checked"].startswith("shapes and groups hold from the first layer to the optimizer's step")
