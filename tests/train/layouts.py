"""The table of docs/parallelism.md: differences of ten steps at each layout from those of one process.

make layouts                        all of them
make layouts NAMES="neox EP2"       those whose names contain one of these words
"""

import functools
import sys

from mt.tests.train.parallel_jobs import CASES, differences, train
from mt.tests.train.processes import Pool


def main() -> None:
    pool = Pool()
    alone = functools.cache(lambda family, how: pool.run(train, 1, family, **dict(how))[0])
    print("| layout | processes | loss | gradient norm | weights |\n|---|---|---|---|---|")
    worst = 0.0
    words = sys.argv[1:] or [""]
    for name in [name for name in CASES if any(word in name for word in words)]:
        family, world, parallel, *how = CASES[name]
        how = dict(*how)
        found = differences(
            alone(family, tuple(how.items())), pool.run(train, world, family, parallel, **how)[0]
        )
        worst = max(worst, *found)
        print(f"| {name} | {world} | {' | '.join(f'{difference:.0e}' for difference in found)} |", flush=True)
    pool.close()
    sys.exit(worst > 1e-10)


if __name__ == "__main__":
    main()
