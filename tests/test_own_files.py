"""The pipeline on other files than the demo's: paragraphs of speeches, reviews, GPT-2's vocabulary."""

import json
import math

import pytest
import yaml

from mt.commands import pipeline


@pytest.fixture(params=["paragraphs", pytest.param("reviews", marks=pytest.mark.slow)])
def corpus(request, tmp_path):
    """(path, number of documents, [(id of a planted copy, id of its original)]) of a corpus."""
    if request.param == "reviews":
        folder = request.getfixturevalue("shared") / "data/corpus"
        planted = map(json.loads, (folder / "reviews_duplicates.jsonl").open())
        return (
            folder / "reviews.jsonl",
            16_800,
            [(p["id"], p["copy_of"]) for p in planted if p["kind"] == "exact"],
        )
    words = " ".join(request.getfixturevalue("speeches")).split()
    texts = [" ".join(words[i : i + 120]) for i in range(0, len(words), 120)]
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    rows += [{"id": f"copy of {i}", "text": texts[i]} for i in range(0, len(texts), 40)]
    (path := tmp_path / "paragraphs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, len(rows), [(f"copy of {i}", str(i)) for i in range(0, len(texts), 40)]


def test_a_users_own_corpus_goes_through_the_whole_pipeline(corpus, gpt2_files, tmp_path):
    path, documents, duplicates = corpus
    tokens = "${tokens}_text_document"
    stages = {
        "clean": {"run": "data clean", "input": str(path), "preset": "prose"},
        "dedup": {"run": "data dedup", "input": "${clean}"},
        "holdout": {"run": "data holdout", "input": "${dedup}", "fraction": 0.02, "lambada": 20},
        "decontaminate": {
            "run": "data decontaminate",
            "input": "${holdout}",
            "evaluation": ["${holdout}/wikitext.txt", "${holdout}/lambada.jsonl"],
        },
        "tokens": {"run": "data tokenize", "input": "${decontaminate}", "append_eod": True, **gpt2_files},
        "train": {
            "run": "train",
            "preset": "tiny",
            "data_path": tokens,
            "split": "99,1,0",
            "num_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "seq_length": 64,
            "micro_batch_size": 2,
            "global_batch_size": 2,
            "train_iters": 15,
            "eval_iters": 1,
            "log_interval": 1,
            **gpt2_files,
        },
        "lambada": {"run": "eval lambada", "load": "${train}", "valid_data": "${holdout}/lambada.jsonl"},
        "report": {"run": "report", "run_dir": "${run_dir}"},
    }
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), "stages": stages}, sort_keys=False))
    summary = pipeline.run(pipeline.RunConfig(pipeline=str(own)))
    rows = {r["stage"]: r for r in summary["stages"]}
    counts = json.loads((tmp_path / "run/clean/manifest.json").read_text())["counts"]
    assert counts["rows_in"] == documents == counts["rows_kept"] + sum(counts["removed"].values())
    assert rows["tokens"]["tokens"] > path.stat().st_size / 8, "most of the text is left"
    train = json.loads((tmp_path / "run/train/manifest.json").read_text())
    assert abs(train["curve"][0][1] - math.log(50257)) < 0.3, "a model that knows nothing yet"
    assert train["train_loss"] < train["curve"][0][1]
    removed = {
        json.loads(line)["id"]
        for path in (tmp_path / "run/dedup/removed").glob("*.jsonl")
        for line in path.open()
    }
    assert duplicates
    assert all(copy in removed or original in removed for copy, original in duplicates)
