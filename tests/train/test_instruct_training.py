"""Instruction tuning: the loss is that of the answers only, and a tuned model generates them."""

import json

import pytest
import torch

from mt.core.config import UserError, build
from mt.eval.tasks.open_qa import QaConfig, qa
from mt.indexed.instruct_dataset import SYSTEM
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.batches import Batches, identity, unigram_entropy
from mt.train.checkpoint.open import open_checkpoint
from mt.train.loop import TrainConfig, train
from mt.train.model.config import ModelConfig
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import build_samples, families_with
from mt.train.model.inputs import PackingConfig
from mt.train.parallel.mesh import Mesh

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENIZER = {"tokenizer_type": "ByteLevelTokenizer"}
QUESTIONS = [
    {"question": q, "answers": [a], "ctxs": [{"title": "", "text": q}]}
    for q, a in (("aa?", "x"), ("bb?", "yy"), ("cc?", "z"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    (folder / "open_inst").mkdir()
    for split in ("train", "dev"):
        (folder / "open_inst" / f"open_inst_QA_{split}.json").write_text(json.dumps(QUESTIONS))
    return folder


def tree(folder, save, **more):
    return {
        "model": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2, **more.pop("model", {})},
        "data": {
            "data_folder": str(folder),
            "data_path": ["open_inst"],
            "seq_length": 300,
            "ft_neighbours": 0,
            **more.pop("data", {}),
        },
        "tokenizer": TOKENIZER,
        "optimizer": {"lr": 1e-2, "lr_warmup_iters": 2},
        "train": {"micro_batch_size": 3, "train_iters": 150, "eval_interval": 150, "eval_iters": 1},
        "checkpoint": {"save": str(save)},
        "log": {"log_interval": 5},
        **more,
    }


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    save = tmp_path_factory.mktemp("tuned") / "run"
    return save, train(build(TrainConfig, ("test", tree(folder, save))))


def test_the_loss_is_that_of_the_answers_only(folder, tuned):
    checkpoint = open_checkpoint(tuned[0])
    model, tokenizer = checkpoint.load_model(), checkpoint.load_tokenizer()
    total = count = 0
    for question in QUESTIONS:
        prompt, answer = (
            tokenizer.encode(SYSTEM + question["question"]),
            [
                *tokenizer.encode(" " + question["answers"][0]),
                tokenizer.eod,
            ],
        )
        with torch.no_grad():
            logprobs = model.logits(model(torch.tensor([prompt + answer[:-1]]))).log_softmax(-1)[0]
        for i, token in enumerate(answer):
            total, count = total - logprobs[len(prompt) - 1 + i, token].item(), count + 1
    assert tuned[1]["valid_loss"] == pytest.approx(total / count, rel=1e-4)
    assert tuned[1]["counts"]["tokens"] == 150 * count


def test_a_tuned_model_gives_the_answers_it_learned(folder, tuned):
    assert tuned[1]["curve"][-1][1] < 0.5
    settings = {
        "load": str(tuned[0]),
        "valid_data": [str(folder / "open_inst")],
        "ft_neighbours": 0,
        "tokens_to_generate": 8,
    }
    scores = qa(build(QaConfig, ("test", settings)))["scores"]
    assert (scores["exact_match"], scores["f1"]) == (1, 1)


def test_a_retro_model_is_tuned_without_retrieval(folder, tmp_path):
    retro = {"num_layers": 6, "retro_add_retriever": True, "retro_encoder_layers": 1, "retro_chunk_length": 8}
    manifest = train(
        build(
            TrainConfig,
            (
                "test",
                tree(
                    folder,
                    tmp_path / "run",
                    model=retro,
                    log={"log_interval": 1},
                    train={"micro_batch_size": 3, "train_iters": 5, "eval_iters": 1},
                ),
            ),
        )
    )
    assert manifest["valid_loss"] < manifest["curve"][0][1]


def test_a_micro_batch_has_the_fields_of_its_samples(folder):
    tokenizer = load(TokenizerConfig(**TOKENIZER))
    config = SampleConfig(data_folder=str(folder), data_path=("open_inst",), seq_length=300)
    dataset = build_samples(ModelConfig(), config, tokenizer, (20, 0, 0))[0]
    micro = Batches(
        dataset,
        micro_batch_size=3,
        vocab_size=tokenizer.vocab_size,
        mesh=Mesh(0, 1, torch.device("cpu")),
        packing=PackingConfig(),
        eod=None,
    ).global_batch(3, 3)[0]
    for row in range(3):
        sample = dataset[3 + row]
        assert micro.tokens[row].tolist() == sample["text"][:-1].tolist()
        assert micro.labels[row].tolist() == sample["text"][1:].tolist()
        assert micro.loss_mask[row].tolist() == sample["answer_mask"][1:].tolist()
    assert identity(dataset, config)["sources"] == [[1.0, dataset.file_digest]]
    assert 0 < unigram_entropy(dataset, tokenizer.vocab_size) < 3


def test_settings_that_do_not_fit_questions_are_refused(folder, tmp_path):
    for changes, message in (
        (
            {"model": {"family": "bert"}},
            f"data.data_folder is for {families_with(lambda f: 'data_folder' in f.data)}, not bert",
        ),
        (
            {"packing": {"reset_position_ids": True}},
            r"packed documents .* are not for the questions of data.data_folder",
        ),
        ({"data": {"ft_neighbours": -1}}, r"data.ft_neighbours = -1 must not be negative"),
        ({"data": {"seq_length": 100}}, r"3 of its 3 questions do not fit data.seq_length = 100"),
    ):
        with pytest.raises(UserError, match=message):
            train(build(TrainConfig, ("test", tree(folder, tmp_path / "run", **changes))))
    assert not (tmp_path / "run").exists()
