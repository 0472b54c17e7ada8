import hashlib

import pytest
import torch
import torch.utils.checkpoint

from mt.tests.train.model.small_models import gpt

pytestmark = pytest.mark.usefixtures("one_thread")


def test_an_initial_weight_depends_only_on_its_name_the_seed_and_the_whole_shape():
    shallow, deep = gpt(seed=7), gpt(seed=7, num_layers=3)
    assert torch.equal(shallow.layers[1].mixer.qkv.weight, deep.layers[1].mixer.qkv.weight)
    digest = hashlib.sha256(b"7:layers.1.mixer.qkv.weight").digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    assert torch.equal(
        shallow.layers[1].mixer.qkv.weight, torch.empty(96, 32).normal_(0, 0.2, generator=generator)
    )
    assert not torch.equal(shallow.embedding.weight, gpt(seed=8).embedding.weight)
    # the standard deviation is divided by sqrt(2 * num_layers)
    assert shallow.layers[0].ffn.down.weight.std().item() == pytest.approx(0.2 / 2, rel=0.05)
    assert (shallow.norm.weight == 1).all()
    assert (shallow.norm.bias == 0).all()
