"""The thread that answers waiting requests together: one batch at a time, all of one adapter, which others may join."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Thread

from dehvf_kit_serve.adapters import Adapter, Prompt
from dehvf_kit_serve.chat_request import Refused
from dehvf_kit_serve.running import RunningBatch

FAILED = "the answer could not be generated; the server's log says why"
log = logging.getLogger(__name__)
GATHERING_S = 0.01
"""What a batch that is not full waits for requests that were sent together."""
JOIN_EVERY = 8
"""Tokens between two looks for requests that can join: prompts that are read together cost less than each alone."""
JOIN_SHARE = 4
"""They join at once where they fill a quarter of the largest batch, or are as many as it answers: its idle rows would cost more."""


def many_wait(waiting: int, working: int, max_batch: int) -> bool:
    """Whether so many jobs could join a batch of `working` rows that it does not wait for more of them."""
    return min(waiting, max_batch - working) >= min(working, max(1, max_batch // JOIN_SHARE))


@dataclass(frozen=True, eq=False)
class Job:
    """A prompt, and what is called in the worker's thread when its row has ended, however it did."""

    prompt: Prompt
    ended: Callable[[], None]


class Batches:
    """A queue of jobs and the thread that works on it.

    max_batch: rows of a batch; max_waiting: requests in the queue or on their way to it, of which more are refused.
    """

    def __init__(self, max_batch: int = 16, max_waiting: int = 64) -> None:
        self.max_batch, self.max_waiting = max_batch, max_waiting
        self.sizes: deque[int] = deque(maxlen=1000)
        self._jobs: deque[Job] = deque()
        self._working: list[Job] = []
        self._coming = 0
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="dehvf-kit serve", daemon=True)
        self._thread.start()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Inside, a request on its way to the queue is one that waits. Raises: Refused where too many do, or the server ends."""
        with self._changed:
            self._refuse_closed()
            waiting = len(self._jobs) + self._coming
            if waiting >= self.max_waiting:
                raise Refused(429, f"{waiting} requests are waiting; try again later", code="queue_full")
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1

    def add(self, job: Job) -> None:
        """Put a job into the queue. Raises: Refused where the server ends."""
        with self._changed:
            self._refuse_closed()
            self._jobs.append(job)
            self._changed.notify_all()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Refused(503, "the server is ending", code="server_ending")

    def refuse(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def close(self, patience_s: float = 0.0) -> None:
        """Take nothing more; what is not answered within `patience_s` is cut short, and told so at once."""
        self.refuse()
        self._thread.join(patience_s)
        with self._changed:
            cut = [*self._jobs, *self._working]
        for job in cut:
            job.prompt.row.cancelled = True
            job.ended()
        self._thread.join(10)

    def _work(self) -> None:
        while batch := self._next():
            if batch[0].prompt.adapter.joins:
                self._run(batch)
                continue
            try:
                self._answer(batch)
            finally:
                self._end(batch)

    def _run(self, batch: list[Job]) -> None:
        """A batch that jobs join as they come, until none is left."""
        adapter = batch[0].prompt.adapter
        running = RunningBatch(adapter.model)
        working: list[Job] = []
        while batch or working:
            if batch:
                working += batch
                self._join(running, batch)
            for count in range(JOIN_EVERY):
                working = self._end([job for job in working if job.prompt.row.done])
                if not working or (count and many_wait(len(self._jobs), len(working), self.max_batch)):
                    break
                try:
                    running.step()
                except Exception:  # whatever a model raises: the server goes on
                    log.exception("generation failed")
                    for job in working:
                        job.prompt.row.error = FAILED
            working = self._end([job for job in working if job.prompt.row.done])
            batch = self._take(adapter, self.max_batch - len(working)) if working else []

    def _join(self, running: RunningBatch, batch: list[Job]) -> None:
        """Put jobs into a running batch; where that fails, each alone, so that one does not fail the others."""
        prompts = [job.prompt for job in batch if not job.prompt.row.done]
        if not prompts:
            return
        try:
            running.join(prompts)
            self.sizes.append(len(running.rows))
        except Exception as error:  # whatever a model raises: the server goes on
            if len(prompts) > 1 and not any(prompt.row.tokens for prompt in prompts):
                log.warning("a batch of %d failed, its requests are answered one by one: %s", len(prompts), error)
                for job in batch:
                    self._join(running, [job])
                return
            log.exception("generation failed")
            for prompt in prompts:
                prompt.row.error = FAILED

    def _take(self, adapter: Adapter, room: int) -> list[Job]:
        """Jobs that may join a running batch: those before the first one of another adapter."""
        found: list[Job] = []
        with self._changed:
            while self._jobs and len(found) < room and self._jobs[0].prompt.adapter is adapter:
                found.append(self._jobs.popleft())
            self._working += found
        return found

    def _end(self, ended: list[Job]) -> list[Job]:
        """Tell jobs that they have ended; those that still work."""
        with self._changed:
            self._working = [job for job in self._working if job not in ended]
            left = list(self._working)
        for job in ended:
            job.ended()
        return left

    def _next(self) -> list[Job]:
        """The next jobs of one adapter, the oldest first; empty when the server ends and none are left."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            until = time.monotonic() + GATHERING_S
            while self._jobs and len(self._jobs) < self.max_batch and not self._closed:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    break
            adapter = self._jobs[0].prompt.adapter if self._jobs else None
            batch = [job for job in self._jobs if job.prompt.adapter is adapter][: self.max_batch]
            for job in batch:
                self._jobs.remove(job)
            self._working = batch
            return batch

    def _answer(self, batch: list[Job]) -> None:
        """One batch; where it fails before anything was said, each of its rows alone, so that one does not fail the others."""
        prompts = [job.prompt for job in batch if not job.prompt.row.cancelled]
        if not prompts:
            return
        self.sizes.append(len(prompts))
        try:
            prompts[0].adapter.generate(prompts)
        except Exception as error:  # whatever a model raises: the server goes on
            if len(prompts) > 1 and not any(prompt.row.tokens for prompt in prompts):
                log.warning("a batch of %d failed, its requests are answered one by one: %s", len(prompts), error)
                for job in batch:
                    self._answer([job])
                return
            log.exception("generation failed")
            for prompt in prompts:
                if prompt.row.finish is None:
                    prompt.row.error = FAILED
