"""The thread that owns the model: runs the requests of all clients in one batch, a token at a time.

A request becomes a `Job`. `submit` takes it from any thread, or refuses it where the queue is full or the
server is shutting down. Clients are served in turn (fair_queue.py). Where the queue is full, a client with
less in it takes the place of the newest job of the client with the most. The job's continuations then run in
the engine's batch, which new ones join between two steps. `job.notify` is called when there is something new
to read. `cancel` removes a job whose client has gone. Every submitted job is notified once that it is
`finished`, whatever happens.
"""

from __future__ import annotations

import collections
import threading
import time
import traceback
from collections.abc import Callable, Sequence

from ..generation.batch import GenerationBatch
from ..generation.beam_search import BeamSearch
from ..generation.sampling import Continuation
from ..lm import LanguageModel
from .fair_queue import FairQueue


class QueueFull(Exception):
    """The job does not fit the queue."""


class ShuttingDown(Exception):
    """The engine takes no more jobs."""


class Job:
    """The work of one request: continuations, or a beam search.

    client: whose it is; clients are served in turn.
    notify: called in the engine's thread, without arguments, when the job has grown (if it is streamed) and
    when it is finished.
    """

    def __init__(
        self,
        continuations: Sequence[Continuation],
        notify: Callable[[], None],
        *,
        streamed: bool = False,
        search: BeamSearch | None = None,
        client: str = "",
    ):
        self.continuations, self.search = list(continuations), search
        self.notify, self.streamed, self.client = notify, streamed, client
        self.started = self.finished = False
        self.crowded_out = False  # ended for another client's job
        self.error: str | None = None  # why it has no result
        # Rows of the batch that it needs: a beam search one for each beam.
        self.rows = search.width if search is not None else len(self.continuations)
        # most positions of a row of the search
        self.positions = 0 if search is None else len(search.prompt) + search.max_new_tokens
        self.size = len(self.continuations) + (search is not None)


class Engine:
    """The queue and the batch of one model. `run` is the work of its thread and returns after `close`.

    max_batch_size: continuations that run at the same time. max_tokens: limit of rows times positions.
    max_queue: continuations that may wait.
    """

    def __init__(self, model: LanguageModel, *, max_batch_size: int, max_tokens: int, max_queue: int):
        self.model, self.max_queue = model, max_queue
        self.batch = GenerationBatch(
            model.model,
            model.tokenizer,
            max_length=model.max_length,
            max_rows=max_batch_size,
            max_tokens=max_tokens,
        )
        self.steps: collections.Counter[int] = collections.Counter()  # steps by their number of rows
        # Guards the fields below. Reentrant, because a signal handler may call close.
        self._changed = threading.Condition()
        self._queue: FairQueue[Continuation] = FairQueue()  # what does not fit the batch
        self._queued_searches: FairQueue[Job] = FairQueue()
        self._cancelled: list[Job] = []
        self._deadline: float | None = None  # set by close
        self._jobs: dict[int, Job] = {}  # by the id of each continuation
        self._searches: list[Job] = []  # running

    @property
    def waiting(self) -> int:
        """Continuations that have not started."""
        return len(self._queue) + len(self._queued_searches) + len(self.batch.waiting)

    @property
    def running(self) -> int:
        return len(self.batch.rows) + sum(job.rows for job in self._searches)

    @property
    def closing(self) -> bool:
        return self._deadline is not None

    def submit(self, job: Job) -> None:
        """Queues a job; raises QueueFull or ShuttingDown."""
        with self._changed:
            if self.closing:
                raise ShuttingDown
            self._make_room(job)
            if job.search is not None:
                self._queued_searches.append(job.client, job)
            for continuation in job.continuations:
                self._jobs[id(continuation)] = job
                self._queue.append(job.client, continuation)
            self._changed.notify()

    def _make_room(self, job: Job) -> None:
        """Ends jobs of clients that have more in the queue than the job's would have; raises QueueFull."""
        waiting = self._queue.counts() + self._queued_searches.counts()
        mine, missing = waiting[job.client] + job.size, self.waiting + job.size - self.max_queue
        victims: list[Job] = []
        while missing > 0:
            client, most = max(waiting.items(), key=lambda item: item[1], default=("", 0))
            queued = [self._jobs[id(c)] for c in self._queue.of(client)] + [*self._queued_searches.of(client)]
            new = (one for one in reversed(queued) if not one.started and one not in victims)
            victim = next(new, None)
            if client == job.client or victim is None or most - victim.size < mine:
                raise QueueFull
            victims.append(victim)
            waiting[client] -= victim.size
            missing -= victim.size
        for victim in victims:
            victim.crowded_out = True
            self._end(victim, "the queue is full, and other clients have less in it; try again later")

    def cancel(self, job: Job) -> None:
        """Ends a job whose client has gone; does nothing where it is finished."""
        with self._changed:
            if not job.finished:
                self._cancelled.append(job)
                self._changed.notify()

    def close(self, grace_s: float) -> None:
        """Takes no more jobs; running ones have `grace_s` seconds to finish."""
        with self._changed:
            self._deadline = time.monotonic() + grace_s
            self._changed.notify()

    def run(self) -> None:
        while True:
            with self._changed:
                while not (self._cancelled or self._busy() or self.closing):
                    self._changed.wait()
                self._feed()
                cancelled, self._cancelled = self._cancelled, []
            for job in cancelled:
                self._end(job, "cancelled")
            if self._deadline is not None and (not self._busy() or time.monotonic() > self._deadline):
                self._end_all("the server is shutting down")
                with self._changed:
                    if not self._busy():
                        return
            elif self._busy():
                try:
                    self._step()
                except Exception as error:  # most likely out of memory: the requests fail, the server goes on
                    traceback.print_exc()
                    self.batch.clear()
                    self._end_all(f"the model failed ({type(error).__name__}); try a shorter request")

    def _busy(self) -> bool:
        return bool(self.waiting or self.batch.rows or self._searches)

    def _feed(self) -> None:
        """Gives the batch what may join it in the next step: no more, so that clients wait in turn."""
        while self._queue and len(self.batch.rows) + len(self.batch.waiting) < self.batch.max_rows:
            continuation = self._queue.popleft()
            self._jobs[id(continuation)].started = True
            self.batch.add(continuation)

    def _start_searches(self) -> None:
        """Starts the beam searches for which there is room, one of each client in turn.

        Searches together have as many rows, and as many rows times positions, as the batch may have; one
        alone always runs, since a request that is too large was refused before.
        """
        with self._changed:
            while self._queued_searches:
                running, new = self._searches, self._queued_searches.first()
                rows = sum(job.rows for job in running) + new.rows
                tokens = sum(job.rows * job.positions for job in running) + new.rows * new.positions
                most = self.batch.max_tokens
                if running and (rows > self.batch.max_rows or (most is not None and tokens > most)):
                    return
                self._searches.append(self._queued_searches.popleft())
                new.started = True

    def _step(self) -> None:
        self._start_searches()
        grown = dict.fromkeys(self._jobs[id(c)] for c in self.batch.step())
        self.steps[self.running] += 1
        for job in list(self._searches):
            if self._cancelled:  # a search's step takes long: the client may have gone
                break
            assert job.search is not None, "a job in _searches has a beam search"
            job.search.step()
            if job.search.done:
                self._end(job)
        for job in grown:
            if all(c.ended for c in job.continuations):
                self._end(job)
            elif job.streamed:
                job.notify()

    def _end(self, job: Job, error: str | None = None) -> None:
        """Removes a job from the queue and the batch and notifies it."""
        with self._changed:
            if job.finished:
                return
            for continuation in job.continuations:
                self._jobs.pop(id(continuation), None)
                if not continuation.ended and not self._queue.remove(job.client, continuation):
                    self.batch.remove(continuation)
            if job in self._searches:
                self._searches.remove(job)
            elif job.search is not None:
                self._queued_searches.remove(job.client, job)
            job.error, job.finished = error, True
        job.notify()

    def _end_all(self, error: str) -> None:
        with self._changed:
            jobs = dict.fromkeys([*self._jobs.values(), *self._searches, *self._queued_searches])
        for job in jobs:
            self._end(job, error)
