"""Several documents packed into a sample, read as one text or separately."""

import itertools

import numpy as np
import pytest
import torch

from mt.core.config import UserError
from mt.train.batches import Batches
from mt.train.loop import train
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.gpt import GPT
from mt.train.model.inputs import PackingConfig
from mt.train.model.layers import initialize
from mt.train.parallel.mesh import Mesh

pytestmark = pytest.mark.usefixtures("one_thread")
EOD = 59
DOCUMENTS = [[3, 14, 15, 9, 2, EOD], [26, EOD], [5, 35, 8, 9, 7, 9, EOD], [32, 3, 8]]


class OneSample:
    """A dataset of one sample: the documents one after the other, and the label of the last token."""

    def batch(self, indices):
        return np.array([[*itertools.chain(*DOCUMENTS), 46]] * len(indices), np.int64)


def micro_batch(**packing):
    mesh = Mesh(0, 1, torch.device("cpu"))
    batches = Batches(
        OneSample(), micro_batch_size=2, vocab_size=60, mesh=mesh, packing=PackingConfig(**packing), eod=EOD
    )
    return batches.global_batch(0, 2)[0]


@pytest.fixture(params=["learned", "rope"])
def model(request):
    config = ModelConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, position_embedding_type=request.param
    )
    model = GPT(resolve(config, vocab_size=60, seq_length=18))
    initialize(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # far from uniform, so that masking a token changes the loss
    return model


def test_separated_documents_have_the_loss_of_each_document_alone(model):
    packed = micro_batch(reset_position_ids=True, reset_attention_mask=True, eod_mask_loss=True)
    loss = model.loss(**packed.arguments())
    alone = 0.0
    for document in DOCUMENTS:
        # the label of an end-of-document token is masked; the last document has none, the sample ends in it
        labels = [*document[1:], 46]
        count = len(document) if document[-1] != EOD else len(document) - 1
        rows = [torch.tensor([x[:count]]) for x in (document, labels)]
        alone += model.loss(*rows, torch.ones(1, count))
    torch.testing.assert_close(loss, 2 * alone, rtol=1e-5, atol=1e-5)


def test_documents_are_one_text_by_default(model):
    default = micro_batch()
    assert default.positions is None
    assert default.documents is None
    assert default.loss_mask.all()
    unmasked = model.loss(default.tokens, default.labels, default.loss_mask)
    masked = micro_batch(reset_attention_mask=True)
    assert not torch.isclose(unmasked, model.loss(**masked.arguments()), rtol=1e-3)


def test_packing_settings_change_the_tokens_and_the_loss_of_a_run(settings, tmp_path):
    plain = train(settings(tmp_path / "plain", train_iters=4, log_interval=1))
    packed = train(
        settings(
            tmp_path / "packed",
            train_iters=4,
            log_interval=1,
            packing={"reset_attention_mask": True, "reset_position_ids": True, "eod_mask_loss": True},
        )
    )
    assert packed["counts"]["tokens"] < plain["counts"]["tokens"], "masked labels are no trained tokens"
    assert packed["train_loss"] != plain["train_loss"]


def test_settings_that_a_run_cannot_satisfy_are_refused_before_the_output_is_made(settings, tmp_path):
    with pytest.raises(UserError, match="fill-in-the-middle needs a prefix token"):
        train(settings(tmp_path / "run", fim={"fim_rate": 0.5}))
    with pytest.raises(UserError, match="this tokenizer has none; leave them out"):
        PackingConfig(eod_mask_loss=True).check_against(None)
    if not torch.cuda.is_available():
        with pytest.raises(
            UserError, match=r"model\.attention_backend = flex needs a GPU, and this runs on cpu; use auto"
        ):
            train(settings(tmp_path / "run", attention_backend="flex"))
    assert not (tmp_path / "run" / "run.json").exists()
