import hashlib

import pytest
import torch
import torch.utils.checkpoint

from mt.tests.train.model.small_models import gpt

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_weight_starts_from_its_name_seed_and_full_shape_alone():
    shallow, deep = gpt(seed=7), gpt(seed=7, num_layers=3)
    assert torch.equal(shallow.layers[1].mixer.qkv.weight, deep.layers[1].mixer.qkv.weight)
    digest = hashlib.sha256(b"7:layers.1.mixer.qkv.weight").digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    assert torch.equal(
        shallow.layers[1].mixer.qkv.weight, torch.empty(96, 32).normal_(0, 0.2, generator=generator)
    )
    assert not torch.equal(shallow.embedding.weight, gpt(seed=8).embedding.weight)
    # over the root of twice the layers
    assert shallow.layers[0].ffn.down.weight.std().item() == pytest.approx(0.2 / 2, rel=0.05)
    assert (shallow.norm.weight == 1).all()
    assert (shallow.norm.bias == 0).all()
