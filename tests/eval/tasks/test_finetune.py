"""RACE, MNLI and QQP: the input by hand and by transformers, resuming, two ranks against one, what bad files
say.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mt.cli import call
from mt.core.config import UserError, build
from mt.eval.classifier import Classifier, Encoder, pretrained
from mt.eval.lm import open_model
from mt.eval.tasks.finetune import PairsConfig, QqpConfig, RaceConfig, mnli, qqp, race
from mt.eval.tasks.multiple_choice import f1
from mt.eval.tasks.race import clean, read_race
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.model.config import ModelConfig, resolve
from mt.train.model.layers import initialize
from mt.train.parallel.mesh import Mesh

COLOURS, ANIMALS = ("red", "blue", "green", "black", "white"), ("cat", "dog", "bird", "fish", "horse")
WORDS = (
    *COLOURS,
    *ANIMALS,
    "what",
    "colour",
    "is",
    "the",
    "?",
    ".",
    "not",
    "there",
    "a",
    "where",
    "in",
    "place",
    "big",
    "it",
    "so",
)


def write_mnli(path, count, seed, *, test=False):
    random = np.random.default_rng(seed)
    lines = [
        "\t".join(
            ["index", *["x"] * 7, "sentence1", "sentence2", *([] if test else ["label1", "gold_label"])]
        )
    ]
    for i in range(count):
        kind, colour, animal = random.integers(3), random.choice(COLOURS), random.choice(ANIMALS)
        second = (f"the {animal} is not {colour}", f"there is a {animal}", "it is so big .")[kind]
        label = ("contradiction", "entailment", "neutral")[kind]
        lines.append(
            "\t".join(
                [str(i), *["x"] * 7, f"the {animal} is {colour}", second, *([] if test else [label, label])]
            )
        )
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_race(folder, count, seed):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        animal, options = random.choice(ANIMALS), random.permutation(COLOURS)[:4].tolist()
        right = int(random.integers(4))
        line = {
            "article": f"The {animal} is  {options[right]} .\n It is so .",
            "questions": [f"the {animal} is _ .", f"what colour is the {animal} ?"],
            "options": [options, options[::-1]],
            "answers": ["ABCD"[right], "ABCD"[3 - right]],
            "id": f"high{i}.txt",
        }
        (folder / f"{i}.txt").write_text(json.dumps(line) + "\n")
    return str(folder)


def write_qqp(path, rows, header="id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"):
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory, vocabulary):
    """A run's directory of a BERT that has taken two steps."""
    folder = tmp_path_factory.mktemp("bert")
    sentences = " ".join(f"The {a} is {c} ." for a in ANIMALS for c in COLOURS)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": sentences}) + "\n" for _ in range(20)))
    tokenizer = ["--tokenizer-type", "BertWordPieceLowerCase", "--vocab-file", vocabulary]
    punkt = ["--input", str(folder / "text.jsonl"), "--output", str(folder / "punkt")]
    call(("data", "train-punkt"), punkt)
    call(
        ("data", "tokenize"),
        [
            "--input",
            str(folder / "text.jsonl"),
            "--output-prefix",
            str(folder / "text"),
            "--split-sentences",
            "--punkt",
            str(folder / "punkt"),
            "--workers",
            "1",
            *tokenizer,
        ],
    )
    model = (
        "--family bert --num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 48 --split"
        " 100,0,0 --eval-iters 0 --micro-batch-size 4 --train-iters 2 --lr 1e-3"
    )
    call(
        ("train",),
        [
            *model.split(),
            *tokenizer,
            "--data-path",
            str(folder / "text_text_sentence"),
            "--save",
            str(folder / "save"),
        ],
    )
    return str(folder / "save")


def pairs(tmp_path, bert, **more):
    given = {
        "pretrained_checkpoint": bert,
        "train_data": [write_mnli(tmp_path / "train.tsv", 60, 1)],
        "valid_data": [write_mnli(tmp_path / "valid.tsv", 30, 2)],
        "output": str(tmp_path / "out"),
        "epochs": 3,
        "lr": 3e-3,
        "log_interval": 1,
        **more,
    }
    return build(PairsConfig, ("test", given))


def test_the_input_is_the_published_one(vocabulary, tmp_path):
    encoder = Encoder(
        load(TokenizerConfig(tokenizer_type="BertWordPieceLowerCase", vocab_file=vocabulary)), 16
    )
    ids = {
        word: i
        for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS)])
    }
    write_race(tmp_path / "race", 1, 0)
    (path,) = (tmp_path / "race").iterdir()
    record = json.loads(path.read_text())
    gap, whole = read_race(path, None)
    assert gap.second == clean(record["article"]) == " ".join(record["article"].split()).replace(" . ", ". ")
    assert gap.first == tuple(record["questions"][0].replace("_", option) for option in record["options"][0])
    assert whole.first == tuple(f"{record['questions'][1]} {option}" for option in record["options"][1])
    assert (gap.id, whole.id, gap.label) == ("high0.txt:0", "high0.txt:1", "ABCD".index(record["answers"][0]))
    batch = encoder.batch([encoder.parts(gap)], torch.device("cpu"))
    article = [ids[w] for w in gap.second.lower().replace(".", " .").split()]
    for row, text in enumerate(gap.first):
        question = [ids[w] for w in text.split()]
        expected = [ids["[CLS]"], *question, ids["[SEP]"], *article][:15] + [ids["[SEP]"]]
        assert batch["tokens"][row].tolist() == expected
        assert batch["token_types"][row].tolist() == [0] * (len(question) + 2) + [1] * (
            len(expected) - len(question) - 2
        )
    assert batch["choices"] == 4


def test_a_long_question_and_a_short_sequence_are_cut_as_megatron_cuts_them(vocabulary):
    encoder = Encoder(
        load(TokenizerConfig(tokenizer_type="BertWordPieceLowerCase", vocab_file=vocabulary)), 8
    )
    sep, cls = encoder.sep, encoder.cls
    assert encoder.sequence([5] * 20, [6]) == ([cls, 5, 5, 5, 5, 5, 5, sep], 7)
    assert encoder.sequence([5, 5], [6, 6, 6, 6, 6]) == ([cls, 5, 5, sep, 6, 6, 6, sep], 4)
    assert encoder.sequence([5], [6]) == ([cls, 5, sep, 6, sep], 3)


def test_logits_and_loss_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    from mt.train.checkpoint.architectures import weights_in
    from mt.train.checkpoint.hf_settings import settings_in

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
        initializer_range=0.3,
        num_labels=3,
    )
    theirs = transformers.BertForSequenceClassification(config).eval()
    held = theirs.state_dict()
    ours = Classifier(settings_in(config.to_dict(), "bert"), 3).eval()
    shapes = {name: p.shape for name, p in ours.bert.named_parameters()}
    ours.bert.load_state_dict(dict(weights_in("bert", shapes, ours.config, held, held.__getitem__, "bert")))
    ours.pooler.load_state_dict(theirs.bert.pooler.dense.state_dict())
    ours.head.load_state_dict(theirs.classifier.state_dict())
    tokens, labels = torch.randint(0, 50, (4, 12)), torch.tensor([0, 2, 1, 1])
    mask = torch.arange(12) < torch.tensor([[12], [5], [9], [12]])
    types = (torch.arange(12) > 4).long().expand(4, 12)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask.long(), token_type_ids=types, labels=labels)
        torch.testing.assert_close(ours(tokens, types, mask, 1), expected.logits, rtol=0, atol=1e-5)
        assert ours.loss(tokens, types, mask, 1, labels).item() == pytest.approx(
            4 * expected.loss.item(), rel=1e-5
        )


def test_finetuning_learns_and_its_checkpoint_gives_the_same_scores_again(tmp_path, bert):
    config = pairs(tmp_path, bert, epochs=6, hidden_dropout=0.0)
    run = mnli(config)
    assert run["scores"]["accuracy"] > 0.9
    assert run["scores"]["accuracy_stderr"] is not None
    assert run["training"]["steps"] == 6 * 8
    assert run["examples"] == 30
    assert [line["epoch"] for line in run["epochs"]] == [1, 2, 3, 4, 5]
    again = mnli(
        build(
            PairsConfig,
            (
                "test",
                {"load": config.output, "valid_data": config.valid_data, "output": str(tmp_path / "again")},
            ),
        )
    )
    assert again["scores"] == run["scores"]
    lines = [json.loads(line) for line in (tmp_path / "again" / "predictions.jsonl").read_text().splitlines()]
    assert (tmp_path / "out" / "predictions.jsonl").read_bytes() == (
        tmp_path / "again" / "predictions.jsonl"
    ).read_bytes()
    assert sum(line["correct"] for line in lines) / 30 == pytest.approx(run["scores"]["accuracy"])
    assert -sum(line["logprobs"][line["label"]] for line in lines) / 30 == pytest.approx(
        run["scores"]["loss"]
    )
    assert mnli(config) == run, "a finished run is not done again"
    with pytest.raises(UserError, match="was finetuned for mnli, not race"):
        race(
            build(
                RaceConfig,
                ("test", {"load": config.output, "valid_data": [write_race(tmp_path / "race", 2, 0)]}),
            )
        )
    test = mnli(
        build(
            PairsConfig,
            (
                "test",
                {"load": config.output, "valid_data": [write_mnli(tmp_path / "test.tsv", 5, 3, test=True)]},
            ),
        )
    )
    assert (test["counts"]["examples"], test["examples"], test["scores"]) == (
        5,
        0,
        {},
    ), "a test set has no labels, so no score"


def run_mt(*arguments, processes=1, wait=True):
    """`mt ...` as a user starts it."""
    start = [
        sys.executable,
        "-m",
        *(
            ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
            if processes > 1
            else []
        ),
        "mt",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if wait:
        return subprocess.run(
            [*start, *arguments], capture_output=True, text=True, env=environment, timeout=200
        )
    return subprocess.Popen(
        [*start, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )


def flags(tmp_path, bert, output, *more):
    return (
        "eval",
        "race",
        "--pretrained-checkpoint",
        bert,
        "--train-data",
        str(tmp_path / "train"),
        "--valid-data",
        str(tmp_path / "dev"),
        "--output",
        output,
        "--epochs",
        "3",
        "--lr",
        "1e-3",
        "--log-interval",
        "1",
        *more,
    )


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, bert):
    write_race(tmp_path / "train", 10, 1), write_race(tmp_path / "dev", 5, 2)
    out = tmp_path / "out"
    config = lambda: build(
        RaceConfig,
        (
            "test",
            {
                "pretrained_checkpoint": bert,
                "train_data": [str(tmp_path / "train")],
                "valid_data": [str(tmp_path / "dev")],
                "output": str(out),
                "epochs": 3,
                "lr": 1e-3,
                "log_interval": 1,
                "save_interval": 2,
            },
        ),
    )
    race(config())
    kept = {
        p.relative_to(out): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    }
    shutil.rmtree(out)
    process = run_mt(*flags(tmp_path, bert, str(out), "--save-interval", "2"), wait=False)
    while process.poll() is None and not list(out.glob("step_*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists(), "it was killed before its end"
    race(config())
    assert {
        p.relative_to(out): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    } == kept


TP2 = {"tensor_model_parallel_size": 2, "attention_dropout": 0.0}  # ranks that share heads drop others
LAYOUTS = {"DP2": {}, "TP2": TP2, "TP2, bfloat16": TP2 | {"bf16": True}}


@pytest.mark.parametrize("layout", ["DP2", "TP2", pytest.param("TP2, bfloat16", marks=pytest.mark.slow)])
def test_two_ranks_finetune_and_score_as_one_does(tmp_path, bert, pool, layout):
    write_race(tmp_path / "train", 9, 1), write_race(tmp_path / "dev", 40, 2)
    common = {
        "pretrained_checkpoint": bert,
        "train_data": [str(tmp_path / "train")],
        "valid_data": [str(tmp_path / "dev")],
        "epochs": 1,
        "lr": 1e-3,
        "log_interval": 1,
        "hidden_dropout": 0.1,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        **LAYOUTS[layout],
    }
    configs = [
        build(
            RaceConfig,
            (
                "test",
                {
                    **common,
                    "output": str(tmp_path / f"out{n}"),
                    **({} if n == 2 else {"tensor_model_parallel_size": 1}),
                },
            ),
        )
        for n in (1, 2)
    ]
    (one,), (two, nothing) = (pool.run(race, n, config) for n, config in enumerate(configs, 1))
    assert nothing is None
    logs = [
        [json.loads(line) for line in (tmp_path / f"out{n}" / "log.jsonl").read_text().splitlines()]
        for n in (1, 2)
    ]
    assert len(logs[0]) == 5
    tolerance = 1e-2 if configs[0].bf16 else 2e-4
    for first, second in zip(*logs, strict=True):
        assert second == pytest.approx(first, rel=tolerance)
    assert two["training"] == pytest.approx(one["training"], rel=tolerance)
    # what two ranks saved, on one and on two
    evaluate = {"load": str(tmp_path / "out2"), "valid_data": [str(tmp_path / "dev")]}
    runs = [
        pool.run(
            race,
            n,
            build(
                RaceConfig,
                (
                    "test",
                    {**evaluate, "output": str(tmp_path / f"scores{n}"), "tensor_model_parallel_size": size},
                ),
            ),
        )[0]
        for n, size in ((1, 1), (2, configs[1].tensor_model_parallel_size))
    ]
    assert runs[1]["scores"] == pytest.approx(runs[0]["scores"], rel=1e-5, abs=1e-8)
    assert two["scores"] == pytest.approx(runs[0]["scores"], rel=1e-5, abs=1e-8)


def test_a_gpt_answers_race_by_likelihood(tmp_path, monkeypatch, language_model):
    folder = write_race(tmp_path / "dev", 6, 4)
    monkeypatch.setattr("mt.eval.tasks.finetune.is_finetuned", lambda place: False)
    monkeypatch.setattr("mt.eval.tasks.finetune.find", lambda place: place)
    monkeypatch.setattr(
        "mt.eval.tasks.finetune.saved_settings", lambda place: type("S", (), {"model": ModelConfig()})
    )
    monkeypatch.setattr("mt.eval.tasks.multiple_choice.open_scorer", lambda *_, mesh: language_model)
    run = race(
        build(
            RaceConfig,
            ("test", {"load": str(tmp_path), "valid_data": [folder], "output": str(tmp_path / "out")}),
        )
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    examples = [e for path in sorted((tmp_path / "dev").iterdir()) for e in read_race(path, None)]
    assert [line["id"] for line in lines] == [e.id for e in examples]
    for line, example in zip(lines, examples):
        prompt = f"Article: {example.second}\n\nQuestion: {example.question}\nAnswer:"
        scores = [
            language_model.loglikelihood([(list(prompt.encode()), list(f" {option}".encode()))])[0][0]
            for option in example.options
        ]
        assert line["logprobs"] == pytest.approx(scores, rel=1e-5)
        assert line["prediction"] == int(np.argmax(scores))
        assert line["prediction_per_byte"] == int(
            np.argmax([s / len(o) for s, o in zip(scores, example.options)])
        )
    assert run["scores"]["accuracy"] == pytest.approx(
        np.mean([line["prediction"] == line["label"] for line in lines])
    )
    assert {"accuracy_stderr", "accuracy_per_byte", "accuracy_per_byte_stderr"} < run["scores"].keys()


def test_qqp_sets_broken_rows_aside_and_tells_f1(tmp_path, bert):
    rows = [
        (
            str(i),
            "1",
            "2",
            "where is the cat ?",
            ("where is the cat ?", "what is red ?")[i % 2],
            str(1 - i % 2),
        )
        for i in range(24)
    ]
    train = write_qqp(tmp_path / "train.tsv", [*rows, ("77", "1", "2", "broken")])
    valid = write_qqp(tmp_path / "valid.tsv", [*rows[:8], ("78", "1"), ("79", "1", "2", "a", "", "1")])
    out = tmp_path / "out"
    run = qqp(
        build(
            QqpConfig,
            (
                "test",
                {
                    "pretrained_checkpoint": bert,
                    "train_data": [train],
                    "valid_data": [valid],
                    "output": str(out),
                    "epochs": 10,
                    "lr": 3e-3,
                    "hidden_dropout": 0.0,
                },
            ),
        )
    )
    assert run["counts"] == {"examples": 8, "scored": 8, "rejected": 3}
    assert [json.loads(line)["place"] for line in (out / "rejects.jsonl").read_text().splitlines()] == [
        "line 26",
        "line 10",
        "line 11",
    ]
    assert run["scores"]["f1"] > 0.9
    assert run["training"]["rejected"] == 1


def test_f1_and_its_standard_error_are_those_of_resampling():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    said = np.where(rng.random(500) < 0.8, labels, ~labels)
    count = lambda right, told: [int(np.sum((right == a) & (told == b))) for a in (0, 1) for b in (0, 1)]
    value, stderr = f1(*count(labels, said))
    sklearn = pytest.importorskip("sklearn.metrics")
    assert value == pytest.approx(sklearn.f1_score(labels, said))
    draws = rng.integers(0, 500, (3000, 500))
    assert stderr == pytest.approx(np.std([f1(*count(labels[d], said[d]))[0] for d in draws[:1000]]), rel=0.1)
    assert f1(5, 0, 0, 0) == (0.0, None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"x\.txt: the file is empty"),
        ("{", r"x\.txt, line 1: malformed JSON at column"),
        ('{"article": "a"}', r"x\.txt, line 1: has no 'questions' that is a list"),
        (
            '{"article": "a", "questions": ["q"], "options": [["1", "2", "3", "4", "5"]], "answers": ["A"]}',
            r"x\.txt, line 1: question 1 has 5 options; RACE has 4; mend it, or pass --on-error skip",
        ),
        (
            '{"article": "a", "questions": ["q"], "options": [["1", "2", "3", "4"]], "answers": ["E"]}',
            r"the answer of question 1 is 'E'; it must be A, B, C or D",
        ),
        (
            '{"article": "a", "questions": ["q", "r"], "options": [["1", "2", "3", "4"]], "answers": ["A"]}',
            "has 2 questions, 1 lists of options and 1 answers",
        ),
    ],
)
def test_a_race_file_that_is_none_is_named_before_anything_is_trained(tmp_path, bert, content, message):
    write_race(tmp_path / "train", 2, 1)
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        race(
            build(
                RaceConfig,
                (
                    "test",
                    {
                        "pretrained_checkpoint": bert,
                        "train_data": [str(tmp_path / "train")],
                        "valid_data": [str(tmp_path / "x.txt")],
                        "output": str(tmp_path / "out"),
                    },
                ),
            )
        )
    assert not list((tmp_path / "out").iterdir()), "nothing stands in the way of the mended command"


def test_settings_that_do_not_fit_are_named(tmp_path, bert):
    valid = write_mnli(tmp_path / "v.tsv", 3, 0)
    for given, message in (
        ({}, "what is to be evaluated"),
        ({"train_data": [valid], "output": "o"}, "give --pretrained-checkpoint"),
        ({"train_data": [valid], "pretrained_checkpoint": bert}, "give --output DIR"),
        (
            {"train_data": [valid], "pretrained_checkpoint": bert, "output": "o", "load": bert},
            "leave --load out",
        ),
        ({"load": bert, "epochs": -1}, "epochs = -1 must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            build(PairsConfig, ("test", {"valid_data": [valid], **given}))
    with pytest.raises(
        UserError, match=r"is no finetuned classifier; finetune it with --pretrained-checkpoint"
    ):
        mnli(build(PairsConfig, ("test", {"load": bert, "valid_data": [valid]})))
    with pytest.raises(UserError, match=r"seq_length = 999 must be at most the 48 positions"):
        mnli(pairs(tmp_path, bert, seq_length=999))
    with pytest.raises(
        UserError,
        match=(
            r"global_batch_size = 12 is not a multiple of micro_batch_size = 8 x 1 data-parallel process = 8"
        ),
    ):
        mnli(pairs(tmp_path, bert, global_batch_size=12))
    with pytest.raises(UserError, match="has 6 columns; a table of MNLI has 10 or more"):
        mnli(pairs(tmp_path, bert, valid_data=[write_qqp(tmp_path / "q.tsv", [])]))
    unlabelled = write_mnli(tmp_path / "t.tsv", 3, 0, test=True)
    with pytest.raises(UserError, match=r"t\.tsv: has no labels to learn from"):
        mnli(pairs(tmp_path, bert, train_data=[unlabelled]))


def test_a_checkpoint_without_its_tokenizer_is_refused_in_one_line(tmp_path, bert):
    copy = shutil.copytree(bert, tmp_path / "copy")
    for path in copy.glob("step_*/tokenizer/tokenizer.json"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"none of its checkpoints is whole \(step_\d+: .*\); use another run's"
    ):
        mnli(pairs(tmp_path, str(copy)))
    (step,) = copy.glob("step_*")
    with pytest.raises(UserError, match=r"tokenizer/tokenizer\.json is missing; use another checkpoint"):
        open_model(str(step), "trained", 1)


def test_the_head_starts_from_the_seed(vocabulary):
    shape = resolve(
        ModelConfig(family="bert", hidden_size=16, num_attention_heads=2, num_layers=1),
        vocab_size=20,
        seq_length=8,
    )
    one, two, other = (Classifier(shape, 3) for _ in range(3))
    for model, seed in ((one, 1), (two, 1), (other, 2)):
        initialize(model, seed)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    assert math.isclose(one.head.weight.std().item(), 0.02, rel_tol=0.5)


def test_an_encoder_without_the_heads_of_pretraining_is_enough(tmp_path, vocabulary):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = len(Path(vocabulary).read_text().split())
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
    }
    theirs = transformers.BertModel(
        transformers.BertConfig(vocab_size=size, initializer_range=0.3, **shape)
    ).eval()
    theirs.save_pretrained(tmp_path)
    transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=True).save_pretrained(tmp_path)
    ours, tokenizer = pretrained(
        str(tmp_path), 3, 1, Mesh(0, 1, torch.device("cpu")), hidden_dropout=0.0, attention_dropout=0.0
    )
    tokens = torch.randint(0, size, (2, 12))
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        hidden = ours.bert(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens))
        torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            ours.pooler(hidden[:, 0]).tanh(), expected.pooler_output, rtol=0, atol=1e-5
        )
    assert tokenizer.vocab_size == size
