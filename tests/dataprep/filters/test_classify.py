"""Documents scored by a program; those with low scores are kept."""

import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import fasttext
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mt.commands import pipeline
from mt.core.config import UserError
from mt.dataprep import trace
from mt.dataprep.filters import classify as module
from mt.dataprep.filters.classify import ClassifyConfig, classify, run_program
from mt.dataprep.filters.fasttext_file import read_model, write_model
from mt.documents.reader import Document

FASTTEXT = Path(__file__).parents[2] / "fixtures/fasttext"

LENGTH = f"""{sys.executable} -c "
import json, sys
for line in sys.stdin:
    print(json.dumps({{'score': len(json.loads(line)['text'])}}))
" """


@pytest.fixture
def corpus(tmp_path):
    """Two files of documents of 1 to 40 characters, each length twice."""
    for name in ("a", "b"):
        lines = [{"id": f"{name}{n}", "text": "x" * n, "topic": n} for n in range(40, 0, -1)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def run(corpus, name="out", **settings):
    manifest = classify(
        ClassifyConfig(
            **{
                "input": (str(corpus / "*.jsonl"),),
                "output": str(corpus / name),
                "command": LENGTH,
                "workers": 1,
                "shard_bytes": 1 << 16,  # for which these files are not so small that they share a shard
                **settings,
            }
        )
    )
    kept = [json.loads(line) for path in sorted((corpus / name).glob("0*.jsonl")) for line in path.open()]
    return manifest, kept


def test_documents_up_to_the_limit_are_kept_with_their_scores(corpus):
    manifest, kept = run(corpus, max_score=3)
    assert [(d["id"], d["score"], d["topic"]) for d in kept] == [
        (f"{f}{n}", n, n) for f in "ab" for n in (3, 2, 1)
    ]
    assert manifest["counts"]["removed"] == {"score_too_high": 74}
    assert json.loads((corpus / "out/removed/00000.jsonl").open().readline()) == {
        "id": "a40",
        "reason": "score_too_high",
        "score": 40.0,
        "at_most": 3.0,
    }
    assert not (corpus / "out/parts").exists()


@pytest.mark.parametrize(
    ("fraction", "ids"), [(0.05, ["a2", "a1", "b2", "b1"]), (1 / 80, ["a1"]), (3 / 80, ["a2", "a1", "b1"])]
)
def test_a_fraction_of_the_documents_is_kept_with_ties_in_their_order(corpus, fraction, ids):
    manifest, kept = run(corpus, keep_fraction=fraction)
    assert [d["id"] for d in kept] == ids
    assert manifest["highest_score_kept"] == max(d["score"] for d in kept)


def test_of_documents_with_equal_scores_the_first_are_kept(corpus):
    alike = f'{sys.executable} -c "import sys; [print(7) for line in sys.stdin]"'
    _, kept = run(corpus, command=alike, keep_fraction=0.75)
    assert [d["id"] for d in kept] == [
        *(f"a{n}" for n in range(40, 0, -1)),
        *(f"b{n}" for n in range(40, 20, -1)),
    ]


def test_two_workers_write_the_bytes_of_one(corpus):
    run(corpus, "one", keep_fraction=0.3)
    run(corpus, "two", keep_fraction=0.3, workers=2)
    for name in ("00000.jsonl", "00001.jsonl", "removed/00001.jsonl"):
        assert (corpus / "one" / name).read_bytes() == (corpus / "two" / name).read_bytes()


def test_scored_shards_are_not_scored_again(corpus):
    counting = (
        f"{sys.executable} -c \"import sys; open('{corpus}/calls', 'a').write('x'); lines ="
        f" sys.stdin.readlines(); assert not open('{corpus}/broken').read() or 'b40' not in lines[0];"
        " print('1\\n' * len(lines))\""
    )
    (corpus / "broken").write_text("yes")
    with pytest.raises(
        UserError,
        match=(
            r"failed on .*b\.jsonl with exit code 1 \(AssertionError\); correct it and run the same"
            r" command again"
        ),
    ):
        run(corpus, command=counting, max_score=1)
    (corpus / "broken").write_text("")
    _, kept = run(corpus, command=counting, max_score=1)
    assert len(kept) == 80
    assert (corpus / "calls").read_text() == "xxx", "the first file was scored once"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (
            "import sys; print(1)",
            r"wrote 1 lines for the 40 documents of .*a\.jsonl; it must write one line for each",
        ),
        (
            "import sys; [print('toxic') for line in sys.stdin]",
            r"line 1 for .*a\.jsonl: 'toxic' is neither a number nor an object with `score`",
        ),
        ("import sys; [print('NaN') for line in sys.stdin]", "the score is not a number"),
        ("import sys; [print(10**400) for line in sys.stdin]", "line 1 for .* is neither a number nor"),
        (
            "import sys; [sys.stdout.buffer.write(bytes((255, 10))) for line in sys.stdin]",
            "line 1 for .*: '\ufffd' is neither a number nor",
        ),
        ("import sys; sys.stdin.read(); sys.exit('no model')", r"exit code 1 \(no model\)"),
    ],
)
def test_a_program_with_wrong_output_is_named(corpus, program, message):
    with pytest.raises(UserError, match=message):
        run(corpus, command=f'{sys.executable} -c "{program}"', max_score=1)


def test_an_unreadable_record_is_refused_or_logged_and_counted(corpus):
    with (corpus / "a.jsonl").open("a") as file:
        file.write('{"text": null}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 41"):
        run(corpus, max_score=3)
    manifest, kept = run(corpus, "again", max_score=3, on_error="skip")
    assert manifest["counts"]["rejected"] == 1
    assert len(kept) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"command": "/no/such/program"}, "there is no program '/no/such/program'"),
        ({"max_score": 1, "keep_fraction": 0.5}, "give one of --max-score X, --min-score X, --keep-fraction"),
        ({}, "give one of --max-score X, --min-score X, --keep-fraction F and --buckets N"),
        ({"max_score": 1, "model": "m.bin"}, "give either --model PATH or --command PROGRAM"),
        ({"max_score": 1, "command": None}, "give either --model PATH or --command PROGRAM"),
        ({"max_score": 1, "label": "a"}, "label = a has no effect on a command; omit it"),
        ({"max_score": 1, "keep": "high"}, "keep = high has no effect without --keep-fraction"),
        ({"buckets": 1}, "buckets = 1 must be from 2 to 1000"),
        (
            {"command": None, "model": "m.bin", "keep_fraction": 0.5},
            "which scores should be kept. Add --keep high or --keep low",
        ),
        ({"keep_fraction": 1.5}, "keep_fraction = 1.5 must be above 0 and at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(corpus, settings, message):
    with pytest.raises(UserError, match=message):
        run(corpus, **settings)


def test_high_scores_can_be_kept_by_threshold_and_by_fraction(corpus):
    manifest, kept = run(corpus, "threshold", min_score=39)
    assert [d["id"] for d in kept] == ["a40", "a39", "b40", "b39"]
    assert manifest["counts"]["removed"] == {"score_too_low": 76}
    manifest, kept = run(corpus, "fraction", keep_fraction=3 / 80, keep="high")
    assert [d["id"] for d in kept] == ["a40", "a39", "b40"], "of two documents with 39, the first"
    assert manifest["lowest_score_kept"] == 39


@hypothesis.given(
    scores=st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=6), min_size=1, max_size=4
    ),
    fraction=st.floats(0.01, 1),
    high=st.booleans(),
)
def test_the_kept_fraction_is_that_of_a_stable_sort(tmp_path_factory, scores, fraction, high):
    folder = tmp_path_factory.mktemp("scores")
    files = [folder / f"{i:05d}.npy" for i in range(len(scores))]
    for file, values in zip(files, scores):
        np.save(file, np.array(values))
    config = ClassifyConfig(
        input=("x",), output="y", command=LENGTH, keep_fraction=fraction, keep="high" if high else "low"
    )
    limit, ties = module._score_limit(config, files, high)
    everything = [(value, shard, place) for shard, of in enumerate(scores) for place, value in enumerate(of)]
    wanted = sorted(everything, key=lambda entry: -entry[0] if high else entry[0])
    wanted = wanted[: max(1, round(fraction * len(everything)))]
    kept = []
    for shard, values in enumerate(scores):
        change, _ = module._make_score_filter(str(folder), limit, ties, high, shard)
        for place, value in enumerate(values):
            if isinstance(change(Document("1", "")), Document):
                kept.append((value, shard, place))
    assert kept == sorted(wanted, key=lambda entry: entry[1:])


def test_buckets_are_the_quantiles_of_all_documents(corpus):
    manifest, kept = run(corpus, buckets=4)
    assert len(kept) == 80
    quarters = np.quantile([d["score"] for d in kept], [0.25, 0.5, 0.75], method="higher")
    assert manifest["bucket_limits"] == quarters.tolist()
    assert [d["bucket"] for d in kept] == np.searchsorted(
        quarters, [d["score"] for d in kept], "right"
    ).tolist()
    assert manifest["documents_in_bucket"] == {"0": 20, "1": 20, "2": 20, "3": 20}


@pytest.fixture
def quality(tmp_path):
    """The texts of a corpus, and the directory of a classifier in whose model file the label is `late`."""
    (tmp_path / "quality").mkdir()
    shutil.copy(FASTTEXT / "softmax_bigrams.bin", tmp_path / "quality/model.bin")
    return tmp_path / "quality"


def test_scores_of_a_model_are_those_of_fasttext(quality, tmp_path, speeches):
    lines = [json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(speeches)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    model = fasttext.load_model(str(quality / "model.bin"))
    known = [dict(zip(*model.predict(t.replace("\n", " "), 3)))["__label__late"] for t in speeches]
    settings = {"command": None, "label": "__label__late", "shard_bytes": 1 << 16}
    for name, path, workers in (("one", quality, 1), ("two", quality / "model.bin", 2)):
        _, kept = run(tmp_path, name, model=str(path), min_score=0, workers=workers, **settings)
        assert [d["score"] for d in kept] == pytest.approx(known, abs=1e-5)
    _, kept = run(tmp_path, "best", model=str(quality), keep_fraction=0.25, keep="high", **settings)
    best = sorted(np.argsort(-np.array(known), kind="stable")[: round(len(known) / 4)].tolist())
    assert [int(d["id"]) for d in kept] == best
    dropped = next(str(n) for n in range(len(known)) if n not in best)
    why = trace.why(trace.WhyConfig(id=dropped, run_dir=(str(tmp_path / "best"),)))
    assert why["steps"][0]["reason"] == "score_too_low"
    assert why["steps"][0]["score"] == pytest.approx(known[int(dropped)], abs=1e-5)


def test_another_model_makes_the_scores_again(quality, corpus):
    settings = {"command": None, "label": "late", "model": str(quality), "min_score": 0}
    first, _ = run(corpus, "one", **settings)
    shutil.copy(FASTTEXT / "softmax_words.bin", quality / "model.bin")
    second, _ = run(corpus, "two", **settings)
    assert first["key"] != second["key"]


def test_a_document_of_which_the_model_knows_nothing_has_no_score(corpus, quality):
    model = read_model(FASTTEXT / "softmax_bigrams.bin")
    model.words[model.words.index(b"</s>")] = b"end"
    options = dataclasses.replace(model.options, word_ngrams=1)
    with (quality / "model.bin").open("wb") as file:
        write_model(file, dataclasses.replace(model, options=options))
    (corpus / "c.jsonl").write_text('{"id": "known", "text": "the"}\n')
    for number, settings in enumerate(
        ({"min_score": 0}, {"buckets": 3}, {"keep_fraction": 1, "keep": "low"})
    ):
        manifest, kept = run(corpus, f"{number}", command=None, model=str(quality), label="late", **settings)
        assert manifest["counts"]["removed"] == {"no_score": 80}
        assert [d["id"] for d in kept] == ["known"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "label = good is none of .*model.bin's labels; give one as --label: late, middle, early"),
        ({"label": "bad"}, "label = bad is none of"),
        ({"model": "/no/such/model.bin"}, "/no/such/model.bin: no such file; check the path"),
        ({"model": "."}, "model = .: the directory has neither model.bin"),
        ({"model": __file__}, "no model of fastText that can be read: its first bytes are"),
    ],
)
def test_a_model_that_cannot_score_is_refused(corpus, quality, settings, message):
    with pytest.raises(UserError, match=message):
        run(corpus, **{"command": None, "model": str(quality), "min_score": 0.5, **settings})


def test_a_directory_of_hugging_face_is_scored_by_mt_eval_score(corpus, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    config = ClassifyConfig(input=("x",), output="y", model=str(tmp_path / "hf"), label="a b", max_score=1)
    scorer = module._scorer(config)
    assert shlex.split(scorer.command)[2:] == (
        ["mt", "eval", "score", "--classifier", str(tmp_path / "hf"), "--label", "a b"]
    )
    assert scorer.files == (str(tmp_path / "hf/config.json"),)


def test_the_settings_of_the_recipe_are_valid_and_its_small_classifier_scores(tmp_path):
    pytest.importorskip("torch", reason="the recipe trains")
    recipe = Path(__file__).parents[3] / "examples/detoxify"
    summary = pipeline.run(
        pipeline.RunConfig(
            pipeline=str(recipe / "detoxify.yaml"), run_dir=str(tmp_path / "run"), dry_run=True
        )
    )
    assert [line.split(":")[0] for line in summary["text"].splitlines()] == [
        "texts",
        "mild",
        "clean",
        "tokens",
        "train",
    ]
    assert not (tmp_path / "run/texts").exists()
    texts = [Document("1", "you stupid damn idiot !", {}), Document("2", "a fine day", {})]
    assert run_program(f"{sys.executable} {recipe / 'words.py'}", texts, "here") == [0.75, 0.0]
