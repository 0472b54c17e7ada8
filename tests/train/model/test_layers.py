import hashlib

import pytest
import torch
import torch.utils.checkpoint

from mt.tests.train.model.small_models import gpt
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize

pytestmark = pytest.mark.usefixtures("one_thread")


class OneRank:
    """What megatron-core asks a process group."""

    def size(self):
        return 1

    def rank(self):
        return 0


@pytest.mark.filterwarnings("ignore:full scope is deprecated")
@pytest.mark.parametrize(
    "family", ["bert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("gpt", "t5"))]
)
def test_embeddings_begin_with_a_deviation_of_their_own_as_in_megatron(family):
    embeddings = pytest.importorskip(
        "megatron.core.models.common.embeddings.language_model_embedding",
        reason="megatron-core is the oracle",
    )
    stds = {"init_method_std": 0.02, "embedding_init_method_std": 0.5}
    shape = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, **stds}
    theirs = embeddings.LanguageModelEmbedding(
        embeddings.TransformerConfig(**shape, use_cpu_initialization=True),
        512,
        256,
        position_embedding_type="learned_absolute",
        num_tokentypes=2 if family == "bert" else 0,
        tp_group=OneRank(),
    )
    untied = {} if family == "bert" else {"untie_embeddings_and_output_weights": True}
    ours = build_model(resolve(ModelConfig(family=family, **shape, **untied), vocab_size=512, seq_length=256))
    initialize(ours, 0)
    found = {name: p.detach() for name, p in ours.named_parameters() if p.ndim == 2}
    names = {"embedding": "word_embeddings", "positions": "position_embeddings"}
    if family == "bert":
        names["token_types"] = "tokentype_embeddings"
    for name, named in names.items():
        expected = getattr(theirs, named).weight
        own = found.pop(f"{name}.weight")
        assert own.shape == expected.shape
        assert own.std().item() == pytest.approx(expected.std().item(), rel=0.2)
    assert found, "matrices that keep init_method_std"
    assert all(matrix.std() < 0.025 for matrix in found.values())


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
