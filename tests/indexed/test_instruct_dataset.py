"""Samples of instruction tuning: the published prompts, the answer's mask, and what does not fit."""

import json
import types

import numpy as np
import pytest

from mt.core.config import UserError
from mt.indexed.instruct_dataset import (
    InstructConfig,
    QuestionDataset,
    build_instruct_datasets,
    encode_prompt,
    prompt_parts,
)
from mt.indexed.questions import Question

# Prompts of the published code (tools/retro/sft/dataset_conv.py): of a dataset with short answers, and of one
# with full answers.
SYSTEM = (
    "System: This is a chat between a user and an artificial intelligence assistant. The assistant gives"
    " helpful, detailed, and polite answers to the user's questions based on the context. The assistant"
    " should also indicate when the answer cannot be found in the context.\n\n"
)
SHORT = (
    SYSTEM
    + "title: T, source: S\n\nUser: Answer the following question with a short span. who?\n\nAssistant: The"
    " answer is"
)
FULL = (
    SYSTEM + "title: T, source: S\n\nUser: Please give a full and complete answer for the question."
    " who?\n\nAssistant:"
)


class Bytes:
    eod, bos, vocab_size, fingerprint = 256, None, 257, "bytes"

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


class Pairs(Bytes):
    """Two equal letters are one token, so the tokens of a text differ from those of its parts."""

    def encode(self, text):
        ids = []
        for byte in text.encode():
            ids = [*ids[:-1], byte + 300] if ids and ids[-1] == byte else [*ids, byte]
        return ids

    def decode(self, ids):
        return bytes(b for i in ids for b in ([i - 300] * 2 if i >= 300 else [i])).decode(errors="replace")


def write(folder, name, questions, split="train"):
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}_QA_{split}.json").write_text(json.dumps(questions))
    return place / f"{name}_QA_{split}.json"


def test_a_sample_is_the_published_prompt_the_answer_and_the_end_of_document(tmp_path):
    record = {
        "question": "who?",
        "answers": ["Anne ", "Bob"],
        "sub-paragraphs": ["T", "S"],
        "ctxs": [{"title": "X", "text": "Y"}],
    }
    for name, prompt in (("nq", SHORT), ("dolly", FULL)):
        dataset = QuestionDataset(
            write(tmp_path, name, [record]), 5, tokenizer=Bytes(), seq_length=500, seed=1, passages=1
        )
        sample = dataset[3]
        expected = [*prompt.encode(), *b" Anne", 256]
        assert sample["text"].tolist() == expected + [256] * (501 - len(expected))
        assert sample["answer_mask"].tolist() == [0] * len(prompt) + [1] * 6 + [0] * (501 - len(expected))


@pytest.mark.parametrize(
    ("name", "turn"),
    [
        ("tqa", "User: Answer the following question with a short span. Q\n\nAssistant: The answer is"),
        ("BoolQ", "User: Answer the following question with True or False. Q\n\nAssistant:"),
        (
            "race",
            "User: Answer the following question by selecting one of the provided options. Q\n\nAssistant:",
        ),
        ("quac", "Q"),
        ("open_inst", "Q"),
    ],
)
def test_every_dataset_has_its_own_instruction(name, turn):
    assert prompt_parts(Question("1", "f", "Q", ("A",)), name) == (SYSTEM, turn)


@pytest.mark.parametrize("tokenizer", [Bytes(), Pairs()])
def test_passages_are_truncated_no_more_than_needed(tokenizer):
    question = Question("1", "f", "who?", ("Anne",))
    passages = ("title: T, source: " + "aabbccdde\u00e9" * 20, "second")
    whole = encode_prompt(tokenizer, question, "nq", passages, None)
    least = len(encode_prompt(tokenizer, question, "nq", (), None))
    for room in (least, least + 1, least + 50, len(whole) - 1, len(whole)):
        ids = encode_prompt(tokenizer, question, "nq", passages, room)
        text = tokenizer.decode(ids)
        assert room - 3 <= len(ids) <= room
        assert text.endswith(
            "User: Answer the following question with a short span. who?\n\nAssistant: The answer is"
        )
        cut = text[len(SYSTEM) : text.index("User:")]
        assert cut == "" or cut.endswith("\n\n")
        assert "\n\n".join(passages).startswith(cut[:-2])
    with pytest.raises(
        ValueError, match=f"has {least} tokens with its instructions, and there is room for {least - 1}"
    ):
        encode_prompt(tokenizer, question, "nq", passages, least - 1)


def test_epochs_are_permutations_and_a_batch_has_its_samples(tmp_path):
    path = write(tmp_path, "nq", [{"question": f"q{i}", "answer": i} for i in range(7)])
    dataset = QuestionDataset(path, 21, tokenizer=Bytes(), seq_length=450, seed=1, passages=0)
    answers = [
        bytes(dataset[k]["text"][dataset[k]["answer_mask"] == 1][1:-1].tolist()).decode() for k in range(21)
    ]
    epochs = [answers[i : i + 7] for i in (0, 7, 14)]
    assert all(sorted(epoch) == list("0123456") for epoch in epochs)
    assert epochs[0] != epochs[1]
    np.testing.assert_array_equal(dataset.batch([3, 9])["text"][1], dataset[9]["text"])
    assert (
        QuestionDataset(path, 21, tokenizer=Bytes(), seq_length=450, seed=2, passages=0).fingerprint
        != dataset.fingerprint
    )


def test_datasets_are_blended_by_weight_and_validated_if_they_have_a_dev_file(tmp_path):
    write(tmp_path, "nq", [{"question": "short", "answer": "s"}])
    write(tmp_path, "dolly", [{"question": "full", "answer": "f"}])
    write(tmp_path, "nq", [{"question": "dev", "answer": "d"}], "dev")
    config = InstructConfig(
        data_folder=str(tmp_path), data_path=("0.75", "nq", "0.25", "dolly"), seq_length=450
    )
    train, valid, test = build_instruct_datasets(config, Bytes(), (40, 3, 0))
    texts = [bytes(t for t in train[k]["text"].tolist() if t < 256).decode() for k in range(40)]
    assert sum("short" in text and "full and complete" not in text for text in texts) == 30
    assert all("dev" in bytes(t for t in valid[k]["text"].tolist() if t < 256).decode() for k in range(3))
    assert test is None
    assert sorted(config.files()) == sorted(str(p) for p in tmp_path.glob("*/*.json"))
    with pytest.raises(
        UserError,
        match=(
            r"dolly_QA_dev.json: no such file, and valid samples are asked for; ask for no such samples:"
            r" --eval-iters 0"
        ),
    ):
        build_instruct_datasets(
            InstructConfig(data_folder=str(tmp_path), data_path=("dolly",), seq_length=450),
            Bytes(),
            (4, 3, 0),
        )
    with pytest.raises(
        UserError,
        match=r"no_QA_train.json: no such file, and train samples are asked for; check --data-folder",
    ):
        build_instruct_datasets(
            InstructConfig(data_folder=str(tmp_path), data_path=("no",), seq_length=450), Bytes(), (4, 3, 0)
        )


def test_long_passages_fill_a_sample_to_its_last_token(tmp_path):
    record = {"question": "who?", "answer": "Anne", "ctxs": [{"title": "T", "text": "S" * 900}]}
    path = write(tmp_path, "nq", [record])
    dataset = QuestionDataset(path, 1, tokenizer=Bytes(), seq_length=500, seed=1, passages=1)
    text, mask = dataset[0]["text"], dataset[0]["answer_mask"]
    assert bytes(text[-20:-1].tolist()) == b"\nAssistant: The answer is Anne"[-19:]
    assert text[-1] == 256
    assert mask.tolist() == [0] * 495 + [1] * 6


def test_questions_that_do_not_fit_and_bad_records_are_refused(tmp_path):
    path = write(
        tmp_path, "nq", [{"question": "who?", "answer": "Anne"}, {"question": "w" * 100, "answer": "x" * 80}]
    )
    make = lambda path, seq_length: QuestionDataset(
        path, 3, tokenizer=Bytes(), seq_length=seq_length, seed=1, passages=1
    )
    fits = (
        len(SYSTEM)
        + len("User: Answer the following question with a short span. \n\nAssistant: The answer is")
        + 100
        + 81
    )
    with pytest.raises(
        UserError,
        match=(
            r"nq_QA_train.json: 1 of its 2 questions do not fit data.seq_length = 450 even without passages;"
            rf" the longest, nq_QA_train.json:2, has \d+ tokens .* raise --seq-length to {fits}, or"
        ),
    ):
        make(path, 450)
    assert make(path, fits)[0]["answer_mask"].sum() > 0
    with pytest.raises(UserError, match=f"raise --seq-length to {fits}, or remove such records"):
        make(path, fits - 1)
    long_answer, long_question = (
        {"question": "w" * 50, "answer": "x" * 200},
        {"question": "w" * 90, "answer": "x"},
    )
    both = write(tmp_path, "nq", [long_question, long_answer])
    with pytest.raises(UserError, match=r"2 of its 2 questions .* the longest, nq_QA_train.json:2, has"):
        make(both, 400)
    with pytest.raises(UserError, match=r"record 1: has no answers; correct or remove the record"):
        make(write(tmp_path, "tqa", [{"question": "who?", "answers": []}]), 450)
    with pytest.raises(UserError, match="no end-of-document token"):
        QuestionDataset(
            path, 3, tokenizer=types.SimpleNamespace(eod=None), seq_length=450, seed=1, passages=1
        )
