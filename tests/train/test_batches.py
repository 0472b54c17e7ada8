import dataclasses
import math

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.indexed.fim import FimConfig, FimDataset
from mt.indexed.gpt_dataset import DataConfig, build_datasets
from mt.train.batches import Batches, identity, unigram_entropy
from mt.train.model.inputs import PackingConfig
from mt.train.parallel.mesh import Mesh


class Numbered:
    """A dataset whose sample k is k, k, k."""

    fingerprint = "numbered"

    def __len__(self):
        return 1000

    def batch(self, indices):
        return np.repeat(np.asarray(indices, np.int64)[:, None], 3, axis=1)


def batches_of_rank(rank: int, world: int, *, vocab_size=1000):
    return Batches(
        Numbered(),
        micro_batch_size=2,
        vocab_size=vocab_size,
        mesh=Mesh(rank, world, torch.device("cpu")),
        packing=PackingConfig(),
        eod=None,
    )


def megatron_batches(consumed: int, world: int, rank: int, count: int) -> list[list[int]]:
    """Megatron-LM's MegatronPretrainingSampler: collect micro x world samples, give each rank its slice."""
    out = []
    for _ in range(count):
        collected = list(range(consumed, consumed + 2 * world))
        out.append(collected[rank * 2 : rank * 2 + 2])
        consumed += 2 * world
    return out


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_reads_the_micro_batches_that_megatron_gives_it(world):
    for rank in range(world):
        ours = [m.tokens[:, 0].tolist() for m in batches_of_rank(rank, world).global_batch(24, 16)]
        assert ours == megatron_batches(24, world, rank, 8 // world)


def test_the_ranks_read_the_micro_batches_of_one_process_with_the_same_numbers():
    alone = {m.index: m.tokens[:, 0].tolist() for m in batches_of_rank(0, 1).global_batch(24, 16)}
    together = {
        m.index: m.tokens[:, 0].tolist()
        for rank in range(4)
        for m in batches_of_rank(rank, 4).global_batch(24, 16)
    }
    assert alone == together


def test_prefetching_gives_the_same_batches_in_order():
    steps = [(0, 4), (4, 8), (12, 2)]
    prefetched = [[m.tokens.tolist() for m in batch] for batch in batches_of_rank(0, 1).over(steps)]
    assert prefetched == [[m.tokens.tolist() for m in batches_of_rank(0, 1).global_batch(*s)] for s in steps]


def test_a_label_is_the_next_token(corpus):
    data = DataConfig(data_path=(corpus,), seq_length=16, split="100,0,0")
    dataset = build_datasets(data, (10, 0, 0))[0]
    (micro,) = Batches(
        dataset,
        micro_batch_size=3,
        vocab_size=60,
        mesh=Mesh(0, 1, torch.device("cpu")),
        packing=PackingConfig(),
        eod=None,
    ).global_batch(0, 3)
    for row in range(3):
        assert micro.tokens[row].tolist() == dataset[row][:-1].tolist()
        assert micro.labels[row].tolist() == dataset[row][1:].tolist()
    assert (micro.loss_mask == 1).all()


def test_a_token_outside_the_vocabulary_is_named():
    with pytest.raises(
        UserError,
        match=(
            r"the data holds token 101, but model.vocab_size = 101; give the tokenizer that the data was made"
            r" with"
        ),
    ):
        list(batches_of_rank(0, 1, vocab_size=101).over([(0, 100), (100, 2)]))


def test_the_unigram_entropy_is_that_of_the_tokens_of_the_training_split(corpus):
    data = DataConfig(data_path=(corpus,), seq_length=16, split="50,50,0")
    dataset = build_datasets(data, (10, 0, 0))[0]
    tokens = np.concatenate([dataset.indexed[i] for i in range(*dataset.range)]).tolist()
    shares = [tokens.count(t) / len(tokens) for t in set(tokens)]
    assert unigram_entropy(dataset, 60) == pytest.approx(-sum(p * math.log(p) for p in shares))
    with pytest.raises(UserError, match=r"holds token 59, but model.vocab_size = 59"):
        unigram_entropy(dataset, 59)


def test_the_unigram_entropy_of_fim_samples_and_remote_data_is_that_of_the_plain_tokens(
    corpus, monkeypatch, tmp_path
):
    class Letters:
        vocab_size, eod, fingerprint = 64, 0, "letters"

        def decode(self, ids):
            return {60: "<fim_prefix>", 61: "<fim_middle>", 62: "<fim_suffix>", 63: "<fim_pad>"}.get(
                ids[0], "x"
            )

    data = DataConfig(data_path=(corpus,), seq_length=16, split="50,50,0")
    dataset = build_datasets(data, (10, 0, 0))[0]
    wrapped = FimDataset(dataset, Letters(), FimConfig(fim_rate=0.5), seed=1)
    assert unigram_entropy(wrapped, 60) == unigram_entropy(dataset, 60)
    ours, theirs = identity(wrapped, data), identity(dataset, data)
    assert ours.pop("order") != theirs.pop("order")
    assert ours == theirs
    monkeypatch.setattr("mt.train.batches.COUNTED_AT_A_TIME", 7)
    distant = dataclasses.replace(
        data, data_path=(f"file://{corpus}",), data_cache_path=str(tmp_path / "cache")
    )
    assert unigram_entropy(build_datasets(distant, (10, 0, 0))[0], 60) == unigram_entropy(dataset, 60)
