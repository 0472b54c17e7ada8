"""A small run for the tests of reports: real document stages; manifests as of training and evaluation."""

import json
from pathlib import Path

from mt.core import manifest
from mt.core.config import configuration, option
from mt.dataprep.decontaminate import DecontaminateConfig, decontaminate
from mt.dataprep.dedup.config import DedupConfig
from mt.dataprep.dedup.dedup import dedup
from mt.dataprep.filters.clean import CleanConfig, clean
from mt.dataprep.stats import StatsConfig, stats

SECRET = " ".join(f"secret{i}" for i in range(13))
LINE = "The river number {n} runs near the old fields of barley, and then it stops under a brown hill by {n}."


@configuration()
class FakeConfig:
    """A stage that only writes a manifest."""

    output: str = option(help="where", role="output")
    lr: float = option(0.001, "a setting")
    echo: bool = option(False, "a setting")


def documents() -> list[dict]:
    """30 documents of two sources: two too short, one with JavaScript's notice, near copies, leaked text."""
    rows = [
        {"id": f"{'ab'[n % 2]}/{n}", "text": " ".join(LINE.format(n=n * 7 + k) for k in range(4))}
        for n in range(24)
    ]
    rows.append({"id": "near/0", "text": rows[0]["text"].replace("brown", "green", 1)})
    rows.append({"id": "leak/0", "text": f"{rows[1]['text'][::-1]} {SECRET} {'and so on. ' * 60}"})
    rows += [{"id": "short/0", "text": "tiny"}, {"id": "short/1", "text": "less <b>x</b>"}]
    rows.append({"id": "script/0", "text": "Please turn on JavaScript now."})
    return rows


def write_documents(folder: Path, rows: list[dict]) -> Path:
    path = folder / "raw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def document_stages(folder: Path, rows: list[dict] | None = None, min_chars: int = 20) -> None:
    """clean/, dedup/, decontaminate/ and stats/ in a folder, from raw.jsonl and evaluation.txt there."""
    raw = write_documents(folder, documents() if rows is None else rows)
    (folder / "evaluation.txt").write_text(SECRET + "\n")
    rules = ("whitespace", "javascript", f"length min_chars={min_chars}")
    here = lambda name: str(folder / name)
    clean(CleanConfig(input=(str(raw),), output=here("clean"), rules=rules, workers=1))
    dedup(DedupConfig(input=(here("clean"),), output=here("dedup"), workers=1))
    decontaminate(
        DecontaminateConfig(
            input=(here("dedup"),),
            output=here("decontaminate"),
            evaluation=(here("evaluation.txt"),),
            workers=1,
        )
    )
    stats(StatsConfig(input=(here("clean"), here("dedup")), output=here("stats"), workers=1))


def fake_stage(
    folder: Path, verb: str, counts: dict | None = None, settings: dict | None = None, **facts
) -> None:
    """A folder with the manifest of a stage."""
    run = manifest.begin(verb, FakeConfig(output=str(folder), **(settings or {})), [])
    run.finish([], counts or {}, **facts)


def log_lines(steps: int = 40, scale: float = 1.0) -> list[dict]:
    """Lines as metrics.RunLog writes them."""
    lines = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "samples": 8 * step,
                "tokens": 800 * step,
                "loss": scale * (3 + 6 / step),
                "lr": 1e-3 * step / steps,
                "weight_decay": 0.1,
                "grad_norm": 1 + 1 / step,
                "skipped": 0,
                "seconds": 0.5,
                "tokens_per_second": 1600.0 + step,
                "data_wait": 0.0,
                "memory_bytes": (step << 20) + (1 << 30),
            }
        )
        if step % 10 == 0:
            lines.append({"step": step, "valid_loss": scale * (3.5 + 5 / step)})
    return lines


def fake_training(folder: Path, scale: float = 1.0, **settings) -> None:
    """A finished training with its log, without a checkpoint."""
    lines = log_lines(scale=scale)
    losses = [[line["step"], line["loss"]] for line in lines if "loss" in line]
    fake_stage(
        folder,
        "train",
        {"steps": 40, "samples": 320, "tokens": 32_000},
        settings,
        parameters=123_456,
        train_loss=losses[-1][1],
        valid_loss=lines[-1]["valid_loss"],
        unigram_entropy=5.5,
        tokens_per_second=1620.5,
        skipped_steps=0,
        curve=losses,
        valid_curve=[[line["step"], line["valid_loss"]] for line in lines if "valid_loss" in line],
    )
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def small_run(folder: Path, scale: float = 1.0, min_chars: int = 20, **settings) -> Path:
    """All stages in a folder, as someone who runs them by hand leaves them."""
    folder.mkdir(parents=True)
    document_stages(folder, min_chars=min_chars)
    fake_training(folder / "model", scale, **settings)
    scores = {"accuracy": 0.25 / scale, "accuracy_stderr": 0.01, "perplexity": 17.5}
    fake_stage(folder / "lambada", "eval lambada", scores=scores)
    fake_stage(folder / "texts", "generate", samples=[{"prompt": "x <i>", "text": " y & </script> z"}])
    return folder
