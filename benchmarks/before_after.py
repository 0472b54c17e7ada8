"""Compares the speed of the data stages of another checkout of mt with this one: CPU seconds.

    git worktree add /tmp/before/mt COMMIT
    python benchmarks/before_after.py /tmp/before/mt

The folder of the other checkout must be named mt. Both run on the interpreter of this process, in turn, each
in a fresh process with one worker, from reading JSONL to survivors written. The corpora are those of
benchmarks/dataprep.py and benchmarks/dedup.py.

The least time of each side counts: other work on the machine only adds to it. `before / after` above 1
means that this checkout is faster; in brackets are the ratios of the single pairs. Bytecode is kept in the
temporary folder, as an installed package has it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import dedup

import dataprep
import indexed

HERE = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="the other checkout, a folder named mt")
    parser.add_argument("--input", help="JSONL with a key `text` to clean (default: the reviews, repeated)")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=["clean", "dedup"], help="commands (default: both)")
    parser.add_argument("--repeats", type=int, default=4, help="of the reviews in the corpus of dedup")
    arguments = parser.parse_args()
    before = arguments.before.resolve()
    if before.name != "mt" or not (before / "cli.py").exists():
        sys.exit(f"{before}: not a checkout of mt in a folder named mt")
    if not (indexed.SHARED / "corpus/reviews.jsonl").exists():
        print("skipped: ../shared/data is not here")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "after").mkdir()
        (folder / "after/mt").symlink_to(HERE)
        checkouts = {"before": before.parent, "after": folder / "after"}
        reviews = indexed.corpus(arguments, folder)
        copies = dedup.corpus(folder / "copies.jsonl", arguments.repeats)
        stages = {
            "clean, the four rule sets of FineWeb": ("clean", reviews, "--rules", *dataprep.FILTERS),
            "clean, preset fineweb": ("clean", reviews, "--preset", "fineweb"),
            "dedup, near duplicates": ("dedup", copies),
            "dedup, exact": ("dedup", copies, "--method", "exact"),
        }
        stages = {stage: given for stage, given in stages.items() if given[0] in arguments.only}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        spent = {(stage, side): [] for stage in stages for side in checkouts}
        for pair in range(-1, arguments.pairs):  # the first pair compiles loops and is not counted
            for stage, (command, source, *flags) in stages.items():
                for side in sorted(checkouts, reverse=pair % 2 == 0):
                    os.environ["PYTHONPATH"] = str(checkouts[side])
                    shutil.rmtree(folder / "out", ignore_errors=True)
                    argv = [sys.executable, "-m", "mt", "data", command, "--input", str(source)]
                    argv += ["--output", str(folder / "out"), "--workers", "1", *flags]
                    cpu = indexed.run(argv)[1]
                    if pair >= 0:
                        spent[stage, side].append(cpu)
        rows = []
        for stage, (_, source, *_) in stages.items():
            old, new = spent[stage, "before"], spent[stage, "after"]
            ratios = sorted(a / b for a, b in zip(old, new, strict=True))
            rows.append(
                (
                    stage,
                    f"{min(old):.2f}",
                    f"{min(new):.2f}",
                    f"{min(old) / min(new):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})",
                    f"{os.path.getsize(source) / 1e6 / min(new):.1f}",
                )
            )
        indexed.table(("stage", "before, CPU s", "after, CPU s", "before / after", "MB/CPU-s after"), rows)


if __name__ == "__main__":
    main()
