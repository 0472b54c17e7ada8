"""A job whose ranks communicate over every group, then wait.

    mt launch --nproc-per-node 2 -m mt.tests.train.parallel.waiting DIR

Each rank writes DIR/RANK with its process id, and ends when DIR/stop is there.
"""

import os
import sys
import time
from pathlib import Path

import torch

from mt.train.parallel.mesh import ParallelConfig, launch

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with launch(ParallelConfig(tensor_model_parallel_size=2)) as mesh:
        mesh.all_reduce(torch.ones(1))
        mesh.all_gather_object(mesh.rank)
        (folder / f".{mesh.rank}").write_text(str(os.getpid()))
        (folder / f".{mesh.rank}").rename(folder / str(mesh.rank))
        while not (folder / "stop").exists():
            time.sleep(0.05)
