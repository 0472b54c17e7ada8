"""Documents scored by a program; those with low scores are kept."""

import json
import sys
from pathlib import Path

import pytest

from mt.commands import pipeline
from mt.core.config import UserError
from mt.dataprep.filters.classify import ClassifyConfig, classify, run_program
from mt.documents.reader import Document

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
    run(corpus, "one", keep_fraction=0.3, shard_bytes=1 << 16)
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
        ({"max_score": 1, "keep_fraction": 0.5}, "give either --max-score X or --keep-fraction F"),
        ({}, "give either --max-score X or --keep-fraction F"),
        ({"keep_fraction": 1.5}, "keep_fraction = 1.5 must be above 0 and at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(corpus, settings, message):
    with pytest.raises(UserError, match=message):
        run(corpus, **settings)


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
