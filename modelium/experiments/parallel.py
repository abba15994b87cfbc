"""Several simulations at once, each in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from multiprocessing import active_children, get_context
from typing import TYPE_CHECKING

from modelium.errors import ModeliumError
from modelium.experiments.experiment import Experiment, Job, Prepared, Summary, play, prepare
from modelium.plugins.registry import make_policy

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event, Lock


def play_in_processes(
    experiment: Experiment, jobs: Sequence[Job], processes: int
) -> Iterator[tuple[int, Summary]]:
    """Yield each job's place and figures as it ends; raises ModeliumError if a process is lost."""
    context, others = get_context("spawn"), set(active_children())
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)),
        mp_context=context,
        initializer=_start,
        initargs=(experiment, context.Lock(), context.Event()),
    )
    try:
        waiting = {pool.submit(_play_elsewhere, experiment, job): i for i, job in enumerate(jobs)}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    except BaseException as error:
        # Runs that go on would write into a folder that is given up, and hold up the exit.
        for worker in set(active_children()) - others:
            worker.terminate()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise ModeliumError(
                "a simulation's process was killed; if memory ran out, --jobs 1 needs least"
            ) from None
        raise
    pool.shutdown(wait=False)


_prepared_once = lru_cache(maxsize=1)(prepare)
"""Each process reads trace and configuration once, for all the runs that it is given."""


def _start(experiment: Experiment, first: Lock, compiled: Event) -> None:
    """Begin a worker: the first one compiles the kernels, the others wait for it."""
    # An interrupt ends a worker at once and without a word; it has nothing to clean up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not first.acquire(block=False):
        compiled.wait()
        return
    try:
        with suppress(ModeliumError):  # which the runs themselves will tell
            _compile(_prepared_once(experiment))
    finally:
        compiled.set()


def _compile(prepared: Prepared) -> None:
    """Play one request: that loads every kernel, or compiles it if this machine never did."""
    import numpy as np

    from modelium.sim.run import simulate

    simulate(prepared.plan.sim_input(), make_policy("lru"), prepared.trace.take(np.arange(1)))


def _play_elsewhere(experiment: Experiment, job: Job) -> Summary:
    return play(_prepared_once(experiment), job)
