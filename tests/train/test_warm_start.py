import pytest
import torch
import torch.nn.functional as F

from mt.train.checkpoint.open import open_checkpoint
from mt.train.model.biencoder import FROM_BERT
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.family import build_model
from mt.train.model.layers import initialize
from mt.train.parallel.mesh import Mesh
from mt.train.warm_start import warm_start

pytestmark = pytest.mark.usefixtures("one_thread")


HERE = Mesh(0, 1, torch.device("cpu"))


def test_towers_start_from_a_bert_of_hugging_face_with_equal_projections(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**shape)).eval()
    theirs.save_pretrained(tmp_path / "bert")
    config = ModelConfig(
        family="ict",
        num_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        ffn_hidden_size=32,
        post_norm=True,
        layernorm_epsilon=1e-12,
        make_vocab_size_divisible_by=8,
        biencoder_projection_dim=6,
    )
    model = build_model(resolve(config, vocab_size=60, seq_length=16)).eval()
    initialize(model, 1)
    warm_start(FROM_BERT, open_checkpoint(tmp_path / "bert"), model, dict(model.named_parameters()), HERE)
    tokens = torch.randint(60, (3, 12))
    present = torch.arange(12) < torch.tensor([[12], [7], [3]])
    with torch.no_grad():
        first = theirs.bert(tokens, attention_mask=present.long()).last_hidden_state[:, 0]
        for embed, tower in ((model.embed_queries, model.query), (model.embed_blocks, model.context)):
            torch.testing.assert_close(
                embed(tokens, present),
                F.linear(first, tower.projection.weight, tower.projection.bias),
                atol=1e-5,
                rtol=1e-5,
            )
    assert torch.equal(model.query.projection.weight, model.context.projection.weight)
