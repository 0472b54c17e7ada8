"""The same commands on real files that are not the demo's: speeches, reviews, and GPT-2's vocabulary."""

import json
import math

import pytest
import yaml

from mt.commands import pipeline


@pytest.mark.parametrize(("name", "documents"), [("speeches", 449), ("reviews", 16_800)])
def test_a_users_own_corpus_goes_through_the_whole_pipeline(shared, tmp_path, name, documents):
    tokens = "${tokens}_text_document"
    tokenizer = {
        "vocab_file": str(shared / "data/gpt2/vocab.json"),
        "merge_file": str(shared / "data/gpt2/merges.txt"),
    }
    stages = {
        "clean": {"run": "data clean", "input": str(shared / f"data/corpus/{name}.jsonl"), "preset": "prose"},
        "dedup": {"run": "data dedup", "input": "${clean}"},
        "holdout": {"run": "data holdout", "input": "${dedup}", "fraction": 0.01, "lambada": 20},
        "decontaminate": {
            "run": "data decontaminate",
            "input": "${holdout}",
            "evaluation": ["${holdout}/wikitext.txt", "${holdout}/lambada.jsonl"],
        },
        "tokens": {"run": "data tokenize", "input": "${decontaminate}", "append_eod": True, **tokenizer},
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
            **tokenizer,
        },
        "lambada": {"run": "eval lambada", "load": "${train}", "valid_data": "${holdout}/lambada.jsonl"},
        "report": {"run": "report", "run_dir": "${run_dir}"},
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), "stages": stages}, sort_keys=False))
    summary = pipeline.run(pipeline.RunConfig(pipeline=str(path)))
    rows = {r["stage"]: r for r in summary["stages"]}
    counts = json.loads((tmp_path / "run/clean/manifest.json").read_text())["counts"]
    assert counts["rows_in"] == documents == counts["rows_kept"] + sum(counts["removed"].values())
    assert rows["tokens"]["tokens"] > 500_000
    train = json.loads((tmp_path / "run/train/manifest.json").read_text())
    assert abs(train["curve"][0][1] - math.log(50257)) < 0.3, "a model that knows nothing yet"
    assert train["train_loss"] < train["curve"][0][1]
    if name == "reviews":
        removed = {
            json.loads(line)["id"]
            for path in (tmp_path / "run/dedup/removed").glob("*.jsonl")
            for line in path.open()
        }
        planted = [json.loads(line) for line in (shared / "data/corpus/reviews_duplicates.jsonl").open()]
        exact = [p for p in planted if p["kind"] == "exact"]
        assert all(p["id"] in removed or p["copy_of"] in removed for p in exact)
