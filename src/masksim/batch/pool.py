"""Processes of this machine that share out the images of a batch.

Threads of one process would be as fast (docs/batch.md), but a decoder that crashes, or memory that
runs out, would end them all; a process that dies takes no other image with it.

Each process has its own thread here and its own pipe. (`pebble.ProcessPool` would take as many
lines, and all its processes read from one pipe under one lock: killed while it holds that lock, a
process stops the others, too.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from masksim.batch.rows import EncodedRow, Job
from masksim.errors import MasksimError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

WINDOW = 64
"""Images a process that may be between the list and the file at a time."""

WAIT = 1.0
"""Seconds after which a caller that waits for a row gets None instead, and can do other things."""

STARTS = 3
"""So many times in a row a process may die before it is ready; then something else is wrong."""


def in_processes(
    paths: Iterator[str], job: Job, workers: int
) -> Generator[EncodedRow | None, None, None]:
    """Give the rows of images in the order of their paths, and None about every `WAIT` seconds.

    Paths are taken as they are needed: never more than `WINDOW` a process ahead of the last row
    given. An image whose process dies is analysed once more while no other is, in case memory ran
    out. If that process dies, too, its row has the error ``crashed``.

    Raises
    ------
    MasksimError
        The processes die before they are ready, or the detector cannot be loaded.
    """
    pool = _Pool(job, workers)
    pending: deque[tuple[str, Future[EncodedRow | None]]] = deque()
    try:
        while True:
            while len(pending) < WINDOW * workers and (path := next(paths, None)) is not None:
                pending.append((path, pool.submit(path)))
            if not pending:
                return
            path, row = pending.popleft()
            yield from _until_done(row)
            if row.result() is None:  # its process has died: once more, alone
                yield from _until_done(*(other for _, other in pending))
                row = pool.submit(path, again=True)
                yield from _until_done(row)
            yield row.result()
    finally:
        pool.close()


def _until_done(*rows: Future[EncodedRow | None]) -> Iterator[None]:
    while wait(rows, timeout=WAIT).not_done:
        yield None


class _Pool:
    """Threads, each of which has a process and waits for it."""

    def __init__(self, job: Job, workers: int) -> None:
        self.job = job
        self.closing = False
        self.own = threading.local()  # `worker`: the process of each thread
        self.workers: set[_Worker] = set()
        self.lock = threading.Lock()  # for `workers`: processes are started and ended one at a time
        self.threads = ThreadPoolExecutor(workers, initializer=_no_interrupt)

    def submit(self, path: str, again: bool = False) -> Future[EncodedRow | None]:
        """Have an image analysed; gives None if its process dies, unless that was `again`."""
        row = self.job.without_analysis(path)
        if row is None:
            return self.threads.submit(self._analyse, path, again)
        done: Future[EncodedRow | None] = Future()
        done.set_result(row)
        return done

    def _analyse(self, path: str, again: bool) -> EncodedRow | None:
        worker = getattr(self.own, "worker", None) or self._start()
        try:
            worker.pipe.send(path)
            row = worker.answer(self.job.timeout)
        except (EOFError, OSError):
            code = self._end(worker)
            if not again:
                return None
            by = f"signal {-code}" if code < 0 else f"exit code {code}"
            why = f"{path}: the process that analysed it died ({by}), twice"
            return self.job.failed(path, why, "crashed")
        if row is None:
            worker.process.kill()
            self._end(worker)
            why = f"{path}: not done after {self.job.timeout:g} seconds"
            return self.job.failed(path, why, "timed_out")
        return row

    def _start(self) -> _Worker:
        """Start a process for this thread, and wait until it has loaded the detector."""
        code = 0
        for _ in range(STARTS):
            with self.lock:
                if self.closing:
                    raise MasksimError("the batch is ending")  # nobody waits for this any more
                worker = _Worker(self.job)
                self.workers.add(worker)
            try:
                problem = worker.answer()
            except (EOFError, OSError):
                code = self._end(worker)
                continue
            if problem is not None:
                self._end(worker)
                raise problem
            self.own.worker = worker
            return worker
        raise MasksimError(f"processes end before they are ready (exit code {code})")

    def _end(self, worker: _Worker) -> int:
        """End this thread's process; return its exit code."""
        self.own.worker = None
        with self.lock:
            self.workers.discard(worker)
            return worker.end()

    def close(self) -> None:
        """End all processes, and with them the threads that wait for them."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        with self.lock:
            self.closing = True
            for worker in self.workers:
                worker.process.kill()
        self.threads.shutdown()
        for worker in self.workers:
            worker.end()


class _Worker:
    """A process with a detector."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_work, args=(other, job), daemon=True)
        with _one_thread():
            self.process.start()
        other.close()

    def answer(self, timeout: float = float("inf")) -> Any:
        """Wait for what the process sends, or its death (EOFError, OSError); None if it is late."""
        # In small steps, so that the time in which all of us were stopped does not count.
        while not self.pipe.poll(step := min(timeout, WAIT)):
            timeout -= step
            if timeout <= 0:
                return None
        return self.pipe.recv()

    def end(self) -> int:
        """End the process; return its exit code."""
        self.pipe.close()
        # A process that is dying by itself gets the time to do so: then its code tells why.
        self.process.join(WAIT)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        return code or 0


def _no_interrupt() -> None:
    """Keep Ctrl-C from this thread and from the processes that it starts."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let new processes use one thread for linear algebra; NumPy asks as it is imported."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    added = [name for name in names if name not in os.environ]
    os.environ.update(dict.fromkeys(added, "1"))
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _work(pipe: Connection, job: Job) -> None:
    """Run a process: load, then make a row for each path that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that leads
    with suppress(EOFError, OSError):  # the other end has gone: so has the batch
        try:
            detector = job.detector()
        except MasksimError as error:
            pipe.send(error)
            return
        pipe.send(None)
        while True:
            pipe.send(job.analysed(detector, pipe.recv()))
