"""Functions that tests send to other processes, which import them from here."""

import multiprocessing
import os
import time

from mt.indexed.build import InputBatch
from mt.indexed.gpt_dataset import DataConfig, build_datasets


def build_first_samples(settings: DataConfig) -> list[list[int]]:
    return build_datasets(settings, (3000, 0, 0))[0].batch([0, 99]).tolist()


def sleep_and_return_pid(batch: InputBatch) -> int:
    time.sleep(0.002)
    return os.getpid()


def sleep_and_return_bytes(batch: InputBatch) -> int:
    time.sleep(0.002 * (batch.bytes % 3))
    return batch.bytes


def end_process(batch: InputBatch) -> None:
    """Kills a worker process, as the kernel does when memory is short; does nothing in the parent."""
    if multiprocessing.parent_process() is not None:
        os._exit(1)
