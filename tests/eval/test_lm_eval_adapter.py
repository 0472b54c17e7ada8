"""lm-eval with our model, compared with lm-eval's Hugging Face backend and with our own tasks."""

import itertools
import json
import math
import os

import pytest
import torch

from mt.cli import call
from mt.core.config import UserError
from mt.eval.lm import open_model
from mt.eval.tasks.lambada import LambadaConfig, lambada
from mt.eval.tasks.wikitext import WikitextConfig, articles, wikitext
from mt.train.checkpoint.open import open_checkpoint

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'mt-lm[eval]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'mt-lm[dev]'"
)
Instance = pytest.importorskip("lm_eval.api.instance").Instance
HFLM = pytest.importorskip(
    "lm_eval.models.huggingface", reason="a package of lm-eval[hf] is not installed"
).HFLM
ours_module = pytest.importorskip("mt.eval.lm_eval_adapter")
LmEvalAdapter, HarnessConfig, harness, REQUESTS_AT_ONCE = (
    ours_module.LmEvalAdapter,
    ours_module.HarnessConfig,
    ours_module.harness,
    ours_module.REQUESTS_AT_ONCE,
)

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
POSITIONS = 48
SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "a small cat sat on the old mat and looked at the moon",
    "nobody knows where the river ends",
    "she said that the house by the lake was empty",
    "naïve words – and more naïve words",
    "it is what it is , and that is that",
]
WIKI = (
    ' \n = Lobster = \n \n The lobster \'s claws ( 24 in ) weigh 1 @.@ 5 – 2 kg , or " more " . \n \n = ='
    " Colour = = \n \n Colour is blue . \n \n = Crab = \n \n"
    + " It walks sideways , and it is what it is . \n"
    * 20
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A Hugging Face directory of a random GPT-2 with a byte-level BPE."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in [*SENTENCES, WIKI]))
    place = folder / "gpt2"
    call(
        ("data", "train-tokenizer"),
        ["--input", str(folder / "text.jsonl"), "--output", str(place), "--vocab-size", "400"],
    )
    (place / "manifest.json").unlink()
    end = transformers.AutoTokenizer.from_pretrained(str(place)).eos_token_id
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=400,
        n_positions=POSITIONS,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.4,
        bos_token_id=end,
        eos_token_id=end,
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def theirs(directory):
    # No cache: it confuses requests with the same text but different ends of the context.
    return HFLM(pretrained=directory, device="cpu", batch_size=4, dtype="float32", logits_cache=False)


@pytest.fixture(scope="module")
def ours(directory):
    return LmEvalAdapter(open_model(open_checkpoint(directory), "positions", 4))


def requests(kind, arguments):
    return [Instance(kind, {}, a, n) for n, a in enumerate(arguments)]


def test_log_likelihoods_are_those_of_lm_evals_own_backend(ours, theirs):
    pairs = [(s[:cut], s[cut:]) for s in SENTENCES for cut in (4, 5, 9)] + [
        ("", SENTENCES[0]),
        ("x " * 60, "the end"),
    ]
    mine, reference = (
        lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True) for lm in (ours, theirs)
    )
    assert [hit for _, hit in mine] == [hit for _, hit in reference]
    assert [p for p, _ in mine] == pytest.approx([p for p, _ in reference], rel=1e-5)


def test_rolling_log_likelihoods_are_those_of_lm_evals_own_backend(ours, theirs):
    texts = [(SENTENCES[0],), (WIKI,), (" ".join(SENTENCES * 3),), ("a",)]
    mine, reference = (
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
        for lm in (ours, theirs)
    )
    assert mine == pytest.approx(reference, rel=1e-5)


def test_generated_texts_are_those_of_lm_evals_own_backend(ours, theirs):
    rules = [
        {"until": ["e"], "max_gen_toks": 12},
        {"until": ["\n\n", "th"], "max_gen_toks": 20, "do_sample": False},
        {"until": [], "max_gen_toks": 5, "temperature": 0.0},
    ]
    arguments = [(s, rule) for s in SENTENCES for rule in rules] + [("word " * 80, rules[0])]
    mine, reference = (
        lm.generate_until(requests("generate_until", arguments), disable_tqdm=True) for lm in (ours, theirs)
    )
    assert mine == reference
    assert len(set(mine)) > 6


def texts_that_end_as_the_model_predicts(theirs, count):
    """`count` texts whose last word is the model's most probable token."""
    found, words = [], sorted({word for s in SENTENCES for word in s.split() if word.isalpha()})
    for first, second in itertools.permutations(words, 2):
        text = f"the {first} of {second}"
        with torch.no_grad():
            best = theirs.tokenizer.decode(
                theirs.model(torch.tensor([theirs.tok_encode(text)])).logits[0, -1].argmax()
            )
        if best.startswith(" ") and best.strip().isalpha():
            found.append(text + best)
        if len(found) == count:
            return found


@pytest.fixture
def files(tmp_path, theirs):
    """(folder of task YAMLs on local files, LAMBADA's file, WikiText's file)"""
    texts = [*SENTENCES, *texts_that_end_as_the_model_predicts(theirs, 6)]
    (tmp_path / "lambada.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "wiki.txt").write_text(WIKI)
    (tmp_path / "wiki.jsonl").write_text(
        "".join(json.dumps({"page": page}) + "\n" for page in articles(WIKI))
    )
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {}\ntest_split: test\n"
    (folder / "lambloc.yaml").write_text(
        "task: lambloc\noutput_type: loglikelihood\n"
        + data.format(tmp_path / "lambada.jsonl")
        + "doc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\ndoc_to_target: \"{{' '+text.split('"
        " ')[-1]}}\"\nmetric_list:\n  - metric: perplexity\n    aggregation: perplexity\n   "
        " higher_is_better: false\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (folder / "wikiloc.yaml").write_text(
        "task: wikiloc\noutput_type: loglikelihood_rolling\n"
        + data.format(tmp_path / "wiki.jsonl")
        + 'doc_to_text: ""\ndoc_to_target: !function wiki.detokenized\nprocess_results: !function'
        " wiki.results\nmetric_list:\n  - metric: word_perplexity\n  - metric: byte_perplexity\n  - metric:"
        " bits_per_byte\n"
    )
    (folder / "wiki.py").write_text(
        "from lm_eval.tasks.wikitext.preprocess_wikitext import process_results as results,"
        " wikitext_detokenizer as detokenized\n"
    )
    return folder, str(tmp_path / "lambada.jsonl"), str(tmp_path / "wiki.txt")


def test_our_lambada_and_wikitext_have_lm_evals_scores(directory, theirs, files, tmp_path):
    folder, passages, text = files
    output = tmp_path / "out"
    run = harness(
        HarnessConfig(
            load=directory,
            tasks=("lambloc,wikiloc",),
            include_path=str(folder),
            output=str(output),
            micro_batch_size=4,
        )
    )
    assert run["examples"] == {"lambloc": 12, "wikiloc": 2}
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    reference = lm_eval.simple_evaluate(
        model=theirs, tasks=["lambloc", "wikiloc"], task_manager=manager, bootstrap_iters=0
    )["results"]
    own = lambada(LambadaConfig(load=directory, valid_data=(passages,), strict_lambada=True))["scores"]
    assert 0 < own["accuracy"] < 1
    assert own["accuracy"] == run["scores"]["lambloc"]["acc"] == reference["lambloc"]["acc,none"]
    assert run["scores"]["lambloc"]["acc_stderr"] == pytest.approx(own["accuracy_stderr"])
    perplexity = reference["lambloc"]["perplexity,none"]
    assert own["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    assert run["scores"]["lambloc"]["perplexity"] == pytest.approx(perplexity, rel=1e-5)
    own = wikitext(WikitextConfig(load=directory, valid_data=text, detokenizer="wikitext"))["scores"]
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        expected = reference["wikiloc"][f"{name},none"]
        assert run["scores"]["wikiloc"][name] == pytest.approx(expected, rel=1e-5)
        assert own["lm_eval"][name] == pytest.approx(expected, rel=1e-5)
    assert own["word_perplexity"] != pytest.approx(own["lm_eval"]["word_perplexity"], rel=1e-3), (
        "mt scores one stream, lm-eval article by article"
    )
    lines = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["lambloc"] * 12 + ["wikiloc"] * 2
    assert sum(line["acc"] for line in lines[:12]) / 12 == run["scores"]["lambloc"]["acc"]
    assert math.exp(-sum(line["answers"][0][0] for line in lines[:12]) / 12) == pytest.approx(
        perplexity, rel=1e-5
    )
    assert (
        harness(
            HarnessConfig(
                load=directory,
                tasks=("lambloc", "wikiloc"),
                include_path=str(folder),
                output=str(tmp_path / "out2"),
                limit=2,
                micro_batch_size=4,
            )
        )["counts"]["examples"]
        == 4
    )


@pytest.fixture
def many(tmp_path):
    """A folder with a task for each kind of request; each has more requests than one block of a rank."""
    words = sorted({word for s in SENTENCES for word in s.split()})
    pairs = itertools.islice(itertools.permutations(words, 2), REQUESTS_AT_ONCE + 20)
    (tmp_path / "many.jsonl").write_text(
        "".join(json.dumps({"first": f"the {a} of", "last": b}) + "\n" for a, b in pairs)
    )
    folder = tmp_path / "many"
    folder.mkdir()
    kinds = {
        "loglikelihood": "metric_list: [{metric: acc}, {metric: perplexity}]\n",
        "loglikelihood_rolling": "metric_list: [{metric: byte_perplexity}]\n",
        "generate_until": (
            "generation_kwargs: {until: ['.'], max_gen_toks: 3}\nmetric_list: [{metric: exact_match}]\n"
        ),
    }
    for kind, rest in kinds.items():
        texts = (
            "doc_to_text: ''\ndoc_to_target: '{{first}} {{last}}'\n"
            if "rolling" in kind
            else "doc_to_text: '{{first}}'\ndoc_to_target: ' {{last}}'\n"
        )
        data = (
            "dataset_path: json\ndataset_kwargs: {data_files: {test:"
            f" {tmp_path / 'many.jsonl'}}}}}\ntest_split: test\n"
        )
        (folder / f"{kind}.yaml").write_text(f"task: many_{kind}\noutput_type: {kind}\n{data}{texts}{rest}")
    return folder


@pytest.mark.slow  # tests/eval/test_open_model.py compares ranks
def test_ranks_in_data_or_tensor_parallelism_score_as_one_process_does(directory, many, pool, tmp_path):
    tasks = ("many_loglikelihood,many_loglikelihood_rolling,many_generate_until",)
    config = lambda name, **more: HarnessConfig(
        load=directory,
        tasks=tasks,
        include_path=str(many),
        output=str(tmp_path / name),
        bootstrap_iters=10,
        **more,
    )
    lines = lambda name: (tmp_path / name / "predictions.jsonl").read_text().splitlines()
    one = harness(config("one"))
    assert len(lines("one")) == one["counts"]["examples"] == 3 * (REQUESTS_AT_ONCE + 20)
    two, nothing = pool.run(harness, 2, config("work"))
    assert nothing is None
    assert two["scores"] == one["scores"]
    assert lines("work") == lines("one")
    two, _ = pool.run(harness, 2, config("model", tensor_model_parallel_size=2))
    for name, scores in one["scores"].items():
        for metric, value in scores.items():
            assert two["scores"][name][metric] == (
                value if value is None else pytest.approx(value, rel=1e-5)
            ), (name, metric)
    answers = [
        [json.loads(line)["answers"] for line in lines(name) if "generate" in json.loads(line)["task"]]
        for name in ("one", "model")
    ]
    assert answers[0] == answers[1]
    assert len({str(answer) for answer in answers[0]}) > 3


def test_mistakes_are_named(directory, files, monkeypatch):
    index = lm_eval.tasks.TaskManager
    # without lm-eval's own tasks, whose index takes seconds
    monkeypatch.setattr(
        ours_module,
        "TaskManager",
        lambda include_path, include_defaults=False: index(include_path=include_path, include_defaults=False),
    )
    folder, _, _ = files
    with pytest.raises(
        UserError,
        match=r"tasks: lamblok is none of lm-eval's [\d,]+ tasks, nor in .*; did you mean lambloc\?",
    ):
        harness(HarnessConfig(load=directory, tasks=("lamblok",), include_path=str(folder)))
    (folder / "gone.yaml").write_text(
        (folder / "lambloc.yaml")
        .read_text()
        .replace("lambloc", "gone")
        .replace("lambada.jsonl", "absent.jsonl")
    )
    with pytest.raises(
        UserError, match=r"tasks gone: lm-eval cannot run them \(FileNotFoundError: .*absent\.jsonl"
    ):
        harness(HarnessConfig(load=directory, tasks=("gone",), include_path=str(folder)))
    (folder / "long.yaml").write_text(
        (folder / "lambloc.yaml")
        .read_text()
        .replace("lambloc", "long")
        .replace(
            "output_type: loglikelihood",
            "output_type: generate_until\ngeneration_kwargs:\n  until: ['x']\n  max_gen_toks: 48",
        )
    )
    with pytest.raises(
        UserError, match=r"the task generates 48 tokens \(max_gen_toks\), but the model has 48 positions"
    ):
        harness(HarnessConfig(load=directory, tasks=("long",), include_path=str(folder)))
    with pytest.raises(UserError, match="tasks must name a task"):
        HarnessConfig(load=directory, tasks=())
    for tasks in (("wikitext,",), ("wikitext", ""), (",",)):
        with pytest.raises(UserError, match="has an empty name; write --tasks NAME,NAME"):
            HarnessConfig(load=directory, tasks=tasks)
