"""Training of BERT and T5: batches of their samples, and whole runs."""

import numpy as np
import pytest
import torch

from mt.core.config import UserError, build
from mt.indexed.gpt_dataset import DataConfig
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.batches import Batches, identity, unigram_entropy
from mt.train.checkpoint.open import open_checkpoint
from mt.train.loop import TrainConfig, train
from mt.train.model.config import ModelConfig
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import build_samples, families_with, family_of
from mt.train.model.inputs import PackingConfig
from mt.train.parallel.mesh import Mesh

pytestmark = pytest.mark.usefixtures("one_thread")


def micro_batch(sentences, model, **data):
    prefix, tokenizer, _ = sentences
    tokenizer = load(TokenizerConfig(**tokenizer))
    config = SampleConfig(data_path=(prefix,), seq_length=32, split="100,0,0", **data)
    dataset = build_samples(model, config, tokenizer, (20, 0, 0))[0]
    batches = Batches(
        dataset,
        micro_batch_size=3,
        vocab_size=70,
        mesh=Mesh(0, 1, torch.device("cpu")),
        packing=PackingConfig(),
        eod=None,
        collate=family_of(model).collate,
    )
    return dataset, batches.global_batch(3, 3)[0]


def test_a_micro_batch_of_bert_has_the_fields_of_its_samples(sentences):
    dataset, micro = micro_batch(sentences, ModelConfig(family="bert", bert_binary_head=True))
    for row in range(3):
        sample = dataset[3 + row]
        for name, theirs in (
            ("tokens", "text"),
            ("token_types", "types"),
            ("padding_mask", "padding_mask"),
            ("loss_mask", "loss_mask"),
            ("swapped", "is_random"),
        ):
            assert getattr(micro, name)[row].tolist() == np.asarray(sample[theirs]).tolist()
        predicted = sample["loss_mask"] == 1
        assert micro.labels[row].numpy()[predicted].tolist() == sample["labels"][predicted].tolist()
    assert set(micro.arguments()) == {
        "tokens",
        "labels",
        "loss_mask",
        "token_types",
        "padding_mask",
        "swapped",
    }
    assert (
        micro_batch(sentences, ModelConfig(family="bert", bert_binary_head=False))[0].fingerprint
        != dataset.fingerprint
    )


def test_a_micro_batch_of_t5_has_the_fields_of_its_samples(sentences):
    dataset, micro = micro_batch(sentences, ModelConfig(family="t5"), decoder_seq_length=20)
    assert micro.tokens.shape == (3, 20)
    for row in range(3):
        sample = dataset[3 + row]
        for name, theirs in (
            ("encoder_tokens", "text_enc"),
            ("padding_mask", "enc_mask"),
            ("tokens", "text_dec"),
            ("loss_mask", "loss_mask"),
        ):
            assert getattr(micro, name)[row].tolist() == sample[theirs].tolist()
        predicted = sample["loss_mask"] == 1
        assert micro.labels[row].numpy()[predicted].tolist() == sample["labels"][predicted].tolist()


def test_the_unigram_entropy_counts_the_documents_of_a_split(sentences):
    prefix, tokenizer, _ = sentences
    config = SampleConfig(data_path=(prefix,), seq_length=32, split="50,50,0")
    dataset = build_samples(
        ModelConfig(family="bert"), config, load(TokenizerConfig(**tokenizer)), (20, 0, 0)
    )[0]
    first, end = dataset.indexed.document_indices[[0, 60]].tolist()
    tokens = np.concatenate([dataset.indexed[i] for i in range(first, end)])
    shares = np.bincount(tokens)[np.unique(tokens)] / len(tokens)
    assert unigram_entropy(dataset, 70) == pytest.approx(-(shares * np.log(shares)).sum())
    assert identity(dataset, config)["sources"] == [[1.0, dataset.indexed.fingerprint]]


def run(sentences, folder, model, **more):
    prefix, tokenizer, _ = sentences
    tree = {
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, **model},
        "data": {
            "data_path": [prefix],
            "seq_length": 32,
            "split": "90,10,0",
            "decoder_seq_length": 24,
            **more.pop("data", {}),
        },
        "tokenizer": tokenizer,
        "optimizer": {"lr": 1e-2, "lr_warmup_iters": 2},
        "train": {
            "micro_batch_size": 8,
            "global_batch_size": 16,
            "train_iters": 25,
            "eval_interval": 25,
            "eval_iters": 1,
        },
        "checkpoint": {"save": str(folder)},
        "log": {"log_interval": 5},
        **more,
    }
    return train(build(TrainConfig, ("test", tree)))


@pytest.mark.parametrize(
    "model",
    [
        {"family": "bert"},
        {"family": "bert", "post_norm": True, "bert_binary_head": False},
        {"family": "t5"},
        {
            "family": "t5",
            "decoder_num_layers": 1,
            "position_embedding_type": "relative",
            "normalization": "RMSNorm",
            "add_bias_linear": False,
            "activation": "geglu",
        },
    ],
    ids=["bert", "original bert", "t5", "t5 v1.1"],
)
def test_a_run_learns_and_its_checkpoint_loads(sentences, tmp_path, model):
    manifest = run(sentences, tmp_path / "run", model)
    first, last = manifest["curve"][0][1], manifest["curve"][-1][1]
    assert last < first - 0.3
    checkpoint = open_checkpoint(tmp_path / "run")
    loaded = checkpoint.load_model()
    assert checkpoint.config.family == model["family"]
    assert sum(p.numel() for p in loaded.parameters()) == manifest["parameters"]


def test_mistakes_are_named_before_anything_is_built(sentences, tmp_path):
    causal = families_with(lambda family: family.causal)
    with pytest.raises(UserError, match=f"are for {causal}, not bert; leave them out"):
        run(sentences, tmp_path / "run", {"family": "bert"}, packing={"reset_position_ids": True})
    with pytest.raises(
        UserError, match=r"data.decoder_seq_length = 128 is longer than model.max_position_embeddings = 32"
    ):
        run(sentences, tmp_path / "run", {"family": "t5"}, data={"decoder_seq_length": 128})
    with pytest.raises(UserError, match=r"mask_prob = 2.0 must lie between 0 and 1"):
        run(sentences, tmp_path / "run", {"family": "bert"}, data={"mask_prob": 2.0})
    assert not (tmp_path / "run").exists()


def test_settings_of_masked_samples_are_not_checked_for_gpt():
    SampleConfig(data_path=("p",), seq_length=4, mask_prob=7.0)
    with pytest.raises(UserError, match="seq_length = 0 must be at least 1"):
        SampleConfig(data_path=("p",), seq_length=0)
    assert {f for f in DataConfig.__dataclass_fields__} < {f for f in SampleConfig.__dataclass_fields__}
