"""the thread that owns the model: batches what is asked for, from any number of requests, a token at a time.

A request becomes a `Job`. `submit` hands it over from any thread or refuses it (the queue is full, the server
is closing); from then on the job's continuations grow in the engine's batch, which newcomers join between two
tokens, and `job.tell` is called when there is something new to read. A job that nobody waits for is taken out
by `cancel`. Whatever happens, every job that was submitted is told once that it is `finished`.
"""

from __future__ import annotations

import collections
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from ..generation.batch import Batch
from ..generation.beam_search import BeamSearch
from ..generation.sampling import Continuation
from ..lm import LanguageModel


class Busy(Exception):
    """The queue is full."""


class Closing(Exception):
    """The server is shutting down."""


class Job:
    """What one request asks for: continuations, or a beam search.

    tell: called in the engine's thread, without arguments, when the job has grown (if it is streamed) or is
    finished.
    """

    def __init__(
        self,
        continuations: Sequence[Continuation],
        tell: Callable[[], None],
        *,
        streamed: bool = False,
        search: BeamSearch | None = None,
    ):
        self.continuations, self.tell, self.streamed, self.search = (
            list(continuations),
            tell,
            streamed,
            search,
        )
        self.finished = False
        self.error: str | None = None  # why it has no result
        self.size = len(self.continuations) + (search is not None)


class Engine:
    """See the story above. `run` is the thread's work and returns after `close`.

    max_batch_size: continuations that grow together. max_tokens: of rows times positions. max_queue:
    continuations that may wait.
    """

    def __init__(self, model: LanguageModel, *, max_batch_size: int, max_tokens: int, max_queue: int):
        self.model, self.max_queue = model, max_queue
        self.batch = Batch(
            model.model,
            model.tokenizer,
            max_length=model.max_length,
            max_rows=max_batch_size,
            max_tokens=max_tokens,
        )
        self.steps = collections.Counter()  # steps by the number of their rows
        # of what follows; reentrant, because a signal's handler may call close
        self._changed = threading.Condition()
        self._inbox: list[Job] = []
        self._cancelled: list[Job] = []
        self._deadline: float | None = None  # once it is closing
        self._jobs: dict[int, Job] = {}  # by the id of each of its continuations
        self._searches: list[Job] = []

    @property
    def waiting(self) -> int:
        """Continuations that nothing has been done for yet."""
        return sum(job.size for job in self._inbox) + len(self.batch.waiting)

    @property
    def running(self) -> int:
        return len(self.batch.rows) + len(self._searches)

    @property
    def closing(self) -> bool:
        return self._deadline is not None

    def submit(self, job: Job) -> None:
        """Takes a job on; raises Busy or Closing."""
        with self._changed:
            if self.closing:
                raise Closing
            if self.waiting + job.size > self.max_queue:
                raise Busy
            self._inbox.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more; nothing happens where it is finished."""
        with self._changed:
            if not job.finished:
                self._cancelled.append(job)
                self._changed.notify()

    def close(self, grace_s: float) -> None:
        """Takes no more jobs, and gives those under way so many seconds to finish."""
        with self._changed:
            self._deadline = time.monotonic() + grace_s
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                while not (self._inbox or self._cancelled or self._busy() or self.closing):
                    self._changed.wait()
                came, self._inbox = self._inbox, []
                gone, self._cancelled = self._cancelled, []
            for job in came:
                self._start(job)
            for job in gone:
                self._end(job, "cancelled")
            if self.closing and (not self._busy() or time.monotonic() > self._deadline):
                self._end_all("the server is shutting down")
                with self._changed:
                    if not self._inbox:
                        return
            elif self._busy():
                try:
                    self._step()
                except Exception as error:  # memory, most likely: the requests fail, the server goes on
                    traceback.print_exc()
                    self.batch.clear()
                    self._end_all(f"the model failed ({type(error).__name__}); try a shorter request")

    def _busy(self) -> bool:
        return bool(self.batch.rows or self.batch.waiting or self._searches)

    def _start(self, job: Job) -> None:
        if job.search is not None:
            self._searches.append(job)
        for continuation in job.continuations:
            self._jobs[id(continuation)] = job
            self.batch.add(continuation)

    def _step(self) -> None:
        grown = dict.fromkeys(self._jobs[id(c)] for c in self.batch.step())
        self.steps[self.running] += 1
        for job in list(self._searches):
            job.search.step()
            if job.search.done:
                self._end(job)
        for job in grown:
            if all(c.ended for c in job.continuations):
                self._end(job)
            elif job.streamed:
                job.tell()

    def _end(self, job: Job, error: str | None = None) -> None:
        """Takes a job out of everything and tells it so."""
        if job.finished:
            return
        for continuation in job.continuations:
            self._jobs.pop(id(continuation), None)
            if not continuation.ended:
                self.batch.remove(continuation)
        if job in self._searches:
            self._searches.remove(job)
        with self._changed:
            job.error, job.finished = error, True
        job.tell()

    def _end_all(self, error: str) -> None:
        for job in dict.fromkeys([*self._jobs.values(), *self._searches]):
            self._end(job, error)
