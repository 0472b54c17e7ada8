"""Writes the table of model sizes in docs/tutorial.md: what `mt plan` says of presets on some machines.

    python .ci/sizes.py        # after a change of mt plan or of a preset; tests/test_docs.py compares

The numbers of tokens are mt plan's default, 20 for each parameter.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if ROOT.name == "mt":  # as the package mt of this checkout, not of another one that is installed
    sys.path.insert(0, str(ROOT.parent))

from mt.commands.configure import configure  # noqa: E402
from mt.train.model.training_cost import large_number  # noqa: E402
from mt.train.plan import PlanConfig, plan  # noqa: E402

PAGE = ROOT / "docs" / "tutorial.md"
MARKS = "<!-- sizes: python .ci/sizes.py -->\n", "<!-- end of sizes -->\n"
MODELS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("tiny", {"vocab_size": 4096}),
    ("tiny", {"vocab_size": 8192, "num_layers": 8, "hidden_size": 512, "num_attention_heads": 8}),
    ("gpt-345m", {"vocab_size": 50257}),
    ("qwen3-0.6b", {"vocab_size": 151936}),
    ("llama3.2-1b", {"vocab_size": 128256}),
    ("llama3-8b", {"vocab_size": 128256}),
)
# Two cores of a server of 2023 multiply float32 matrices at 0.15 TFLOP/s. Without these figures the plan
# would measure the machine that it runs on.
CORES: dict[str, Any] = {"gpu": "cpu", "peak_tflops": 0.15, "gpu_memory_gib": 64}
GPU: dict[str, Any] = {"gpu": "H100", "bf16": True, "global_batch_size": 256}
MACHINES: tuple[dict[str, Any], ...] = (CORES, GPU | {"world_size": 1}, GPU | {"world_size": 8})
COLUMNS = ("preset", "parameters", "tokens", "memory, 2 cores", "2 cores", "one H100", "eight H100")


def table() -> str:
    """The table as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for preset, settings in MODELS:
        plans = [plan(configure(PlanConfig, [("sizes", machine | settings)], preset)) for machine in MACHINES]
        cells = [
            " ".join(
                [f"`{preset}`", *(f"`{_flag(n)} {v}`" for n, v in settings.items() if n != "vocab_size")]
            ),
            large_number(plans[0]["parameters"]),
            large_number(plans[0]["tokens"]),
            f"{plans[0]['given']['memory'] / 2**30:,.1f} GiB",
            *(_time(made) for made in plans),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(text: str, made: str) -> str:
    """The text of the page with the table between its marks."""
    begin, end = MARKS
    return re.sub(
        f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _: f"\n{made}\n", text, flags=re.DOTALL
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _time(made: dict[str, Any]) -> str:
    """The time of the fastest layout that fits."""
    if not made["fitting"]:
        return "does not fit"
    hours = made["layouts"][0]["hours"]
    if hours < 1 / 60:
        return "under a minute"
    for limit, unit, name in ((1, 1 / 60, "minutes"), (48, 1, "hours"), (24 * 365, 24, "days")):
        if hours < limit:
            return f"{hours / unit:,.1f} {name}"
    return f"{hours / 24 / 365:,.0f} years"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), table()), encoding="utf-8")
