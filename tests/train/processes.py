"""A pool of processes that run the ranks of small jobs.

The processes start once, because importing torch takes longer than a job.

    pool.run(function, 4, argument ...)     runs function(argument ...) on ranks 0 to 3, with torchrun's
                                            environment variables; returns their results by rank
"""

import contextlib
import gc
import importlib
import multiprocessing
import os
import socket
import traceback


class Pool:
    def __init__(self):
        self.workers = []

    def run(self, function, world_size: int, *arguments, **options) -> list:
        """Raises AssertionError with the tracebacks of failed ranks; the next run starts new processes."""
        context = multiprocessing.get_context("spawn")
        while len(self.workers) < world_size:
            here, there = context.Pipe()
            worker = context.Process(target=_work, args=(there,), daemon=True)
            worker.start()
            self.workers.append((worker, here))
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank, (_, pipe) in enumerate(self.workers[:world_size]):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world_size,
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            }
            pipe.send((function, arguments, options, {name: str(value) for name, value in variables.items()}))
        answers, failures = [], []
        for rank, (worker, pipe) in enumerate(self.workers[:world_size]):
            while not pipe.poll(1):
                if not worker.is_alive() and not pipe.poll(0):
                    failures.append(f"rank {rank} ended with exit code {worker.exitcode}")
                    break
            else:
                try:
                    result, failure = pipe.recv()
                except EOFError:
                    result, failure = None, f"rank {rank} ended"
                answers.append(result)
                failures += [f"rank {rank}:\n{failure}"] if failure else []
            if failures:
                self.close()  # other ranks may wait for the failed one
                raise AssertionError("\n".join(failures))
        return answers

    def close(self) -> None:
        for worker, _ in self.workers:
            worker.kill()
            worker.join()
        self.workers = []


def _work(pipe) -> None:
    # CPU only, because a machine may have fewer GPUs than a job has ranks
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    import torch

    torch.set_num_threads(1)
    importlib.import_module("mt.train.loop")
    gc.freeze()  # or every collection of garbage visits the objects of these libraries
    while True:
        try:
            function, arguments, options, variables = pipe.recv()
        except EOFError:
            os._exit(0)  # not sys.exit: a process group could abort the interpreter's shutdown
        os.environ.update(variables)
        try:
            pipe.send((function(*arguments, **options), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
        _forget_meshes()


def _forget_meshes() -> None:
    """Empties DTensor's caches, which keep the meshes of earlier jobs; each process group has three threads.

    After all jobs of the test suite there were 300 threads in each process, which used half a processor.
    """
    with contextlib.suppress(ImportError, AttributeError):  # names of torch 2.13
        from torch.distributed.tensor import _collective_utils, _redistribute, debug

        debug._clear_sharding_prop_cache()
        _redistribute._gen_transform_infos.cache_clear()
        _redistribute.clear_redistribute_planner_cache()
        _collective_utils.MeshTopoInfo.build_from_mesh.cache_clear()
    gc.collect()
