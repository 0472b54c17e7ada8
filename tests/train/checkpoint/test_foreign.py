"""Reading weights of other libraries one at a time, as torch.distributed.checkpoint requests them."""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import LoadPlan
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from mt.train.checkpoint.base import weight_shapes
from mt.train.checkpoint.foreign import ForeignCheckpoint, WeightReader
from mt.train.model.config import ModelConfig, resolve

pytestmark = pytest.mark.usefixtures("one_thread")


class Numbered(ForeignCheckpoint):
    """A checkpoint whose weights are 0, 1, 2 ...; `read` lists the names of those that were read."""

    library = "test"
    settings_remedy = "nothing"

    def __init__(self, path=Path("numbered")):
        super().__init__(path)
        config = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4)
        self.config = resolve(config, vocab_size=60, seq_length=16)
        self.seq_length, self.step, self.read = 16, 0, []

    def load_tokenizer(self):
        raise NotImplementedError

    def read_weight(self, name, shape):
        self.read.append(name)
        return torch.arange(shape.numel(), dtype=torch.float32).reshape(shape)


def test_a_model_is_filled_with_each_weight_read_once():
    checkpoint = Numbered()
    model = checkpoint.load_model()
    shapes = weight_shapes(checkpoint.config)
    assert sorted(checkpoint.read) == sorted(shapes)
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, torch.arange(weight.numel(), dtype=torch.float32).reshape(shapes[name]))


def test_the_vocabulary_has_the_rows_of_the_model_that_is_filled():
    checkpoint = Numbered()
    for multiple, rows in ((128, 128), (1, 60), (16, 64)):
        config = resolve(
            ModelConfig(
                num_layers=2, hidden_size=32, num_attention_heads=4, make_vocab_size_divisible_by=multiple
            ),
            vocab_size=60,
            seq_length=16,
        )
        metadata = WeightReader(checkpoint, config).read_metadata().state_dict_metadata
        assert metadata["model.embedding.weight"].size == (rows, 32)


class Planner:
    """The part of torch's LoadPlanner that read_data calls."""

    def __init__(self, targets):
        self.targets, self.committed = targets, []

    def resolve_tensor(self, item):
        target = self.targets[item.dest_index.fqn]
        return target[tuple(slice(a, a + n) for a, n in zip(item.dest_offsets, item.lengths))]

    def commit_tensor(self, item, tensor):
        self.committed.append((item.dest_index.fqn, tuple(tensor.shape)))


def item(name, source, target, lengths):
    index = MetadataIndex(name)
    return ReadItem(
        LoadItemType.TENSOR, index, torch.Size(target), index, torch.Size(source), torch.Size(lengths)
    )


def test_shards_are_cut_from_a_weight_that_is_read_once():
    checkpoint = Numbered()
    name = "layers.0.ffn.up.weight"
    shape = weight_shapes(checkpoint.config)[name]
    whole = checkpoint.read_weight(name, shape)
    checkpoint.read.clear()
    targets = {f"model.{name}": torch.full(shape, -1.0)}
    planner = Planner(targets)
    items = [
        item(f"model.{name}", (8, 4), (0, 0), (3, 5)),
        item(f"model.{name}", (0, 16), (3, 5), (2, 16)),
    ]
    WeightReader(checkpoint, checkpoint.config).read_data(LoadPlan(items), planner).wait()
    expected = torch.full(shape, -1.0)
    expected[:3, :5], expected[3:5, 5:21] = whole[8:11, 4:9], whole[:2, 16:32]
    assert torch.equal(targets[f"model.{name}"], expected)
    assert checkpoint.read == [name]
    assert planner.committed == [(f"model.{name}", (3, 5)), (f"model.{name}", (2, 16))]
