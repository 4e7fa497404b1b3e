"""The measuring loop: contestants take turns in one process, and every answer is checked before it counts."""

from __future__ import annotations

import gc
import signal
import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MIN_BATCHES = 7
SLOW_CALL = 2.0  # seconds; a contestant whose one call takes longer gets fewer batches, and the table says so
SETTLE = 0.06  # seconds between two contestants: idle thread pools go on spinning for up to 0.05


@dataclass
class Contestant:
    """One library's way to do one job, ready to be timed.

    statement: what a user would write, for example `f([x, y])`; it is timed as it stands.
    names: the values of the names in the statement.
    answer: turns the statement's value into NumPy arrays, outside the timing.
    calls: how often the statement runs before the answer is taken (training steps change the weights).
    before: runs, untimed, before each batch; a batch is then one call.
    """

    statement: str
    names: dict[str, Any]
    answer: Callable[[Any], Sequence[np.ndarray]] = lambda value: [np.asarray(value)]
    calls: int = 1
    before: Callable[[], None] | None = None

    def timer(self) -> timeit.Timer:
        return timeit.Timer(self.statement, globals=self.names)


@dataclass
class Entry:
    """A contestant before it is built: who it is and how to build it."""

    peer: str
    build: Callable[[], Contestant]


@dataclass
class Job:
    """A workload as the harness sees it: who takes part, the right answer, and the unit of the figures."""

    name: str
    what: str
    entries: list[Entry]
    reference: Callable[[], Sequence[np.ndarray]] = lambda: ()
    tolerance: float = 0.0
    ulps: bool = False  # also state the error in units in the last place of float32
    unit: str = "s"  # anything else: the statement's own value is the figure, and one run is enough


@dataclass
class Result:
    """What one contestant did in one workload. `state` is ok, wrong, failed or not installed."""

    workload: str
    peer: str
    state: str
    detail: str = ""
    value: float | None = None  # the median, in `unit`
    unit: str = "s"
    low: float | None = None
    high: float | None = None
    batches: int = 0
    calls_per_batch: int = 0
    build_s: float | None = None
    error: float | None = None
    tolerance: float | None = None
    max_ulp: float | None = None
    statement: str = ""
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How long to measure: batches a contestant, seconds a batch, warm-up, and the limit on one build."""

    batches: int = MIN_BATCHES
    batch_s: float = 0.05
    warm_s: float = 0.1
    build_limit_s: float = 120.0
    settle_s: float = SETTLE

    @staticmethod
    def quick() -> Settings:
        """For a first look and for tests: as many batches, but short ones."""
        return Settings(batch_s=0.004, warm_s=0.01, build_limit_s=60.0)


class BuildTimeout(BaseException):
    """A contestant took longer to build than the limit; no Exception, so that no library swallows it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise BuildTimeout in the main thread after `seconds`; native code is interrupted when it returns."""

    def expire(signum: int, frame: Any) -> None:
        raise BuildTimeout(f"not built after {seconds:.0f} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def relative_error(answers: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> float:
    """The largest |answer - reference| over the largest |reference|, the worst over all arrays.

    NaN if an answer is not finite. Raises ValueError when the number of arrays or a shape differs.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers, but {len(references)} references")
    worst = 0.0
    for answer, reference in zip(answers, references):
        if answer.shape != reference.shape:
            raise ValueError(f"the answer has shape {answer.shape}, the reference {reference.shape}")
        if not np.isfinite(answer).all():
            return float("nan")
        if reference.size:
            scale = float(np.abs(reference).max()) or 1.0
            worst = max(worst, float(np.abs(answer.astype(np.float64) - reference).max()) / scale)
    return worst


def largest_ulp(answer: np.ndarray, reference: np.ndarray) -> float:
    """The largest error of a float32 `answer` in units in the last place of the float64 `reference`."""
    spacing = np.spacing(np.abs(reference).astype(np.float32)).astype(np.float64)
    return float(np.max(np.abs(answer.astype(np.float64) - reference) / spacing))


def run_job(job: Job, settings: Settings, progress: Callable[[str], None] = lambda text: None) -> list[Result]:
    """Build, check and time every contestant of a job; one Result each, in the order of the entries."""
    if job.unit != "s":
        return [read_figure(entry, job, settings, progress) for entry in job.entries]
    reference = [np.asarray(r, dtype=np.float64) for r in job.reference()]
    results: dict[str, Result] = {}
    ready: dict[str, Contestant] = {}
    for entry in job.entries:
        progress(f"{job.name}: building {entry.peer}")
        result = results[entry.peer] = Result(job.name, entry.peer, "ok", tolerance=job.tolerance)
        contestant = build_and_check(entry, job, reference, result, settings)
        if contestant is not None:
            ready[entry.peer] = contestant
    progress(f"{job.name}: timing")
    for peer, outcome in time_in_turns(ready, settings).items():
        result = results[peer]
        if isinstance(outcome, Exception):
            result.state, result.detail = "failed", describe(outcome)
            continue
        result.times, result.calls_per_batch = outcome
        result.batches = len(result.times)
        result.value = statistics.median(result.times)
        result.low, result.high = min(result.times), max(result.times)
    return list(results.values())


def read_figure(entry: Entry, job: Job, settings: Settings, progress: Callable[[str], None]) -> Result:
    """Run a contestant whose value is itself the figure."""
    progress(f"{job.name}: measuring {entry.peer}")
    result = Result(job.name, entry.peer, "ok", unit=job.unit)
    try:
        with time_limit(settings.build_limit_s):
            contestant = entry.build()
            result.statement = contestant.statement
            result.value = float(eval(contestant.statement, contestant.names))
        result.batches = result.calls_per_batch = 1
    except (Exception, BuildTimeout) as error:
        result.state, result.detail = "failed", describe(error)
    return result


def build_and_check(
    entry: Entry, job: Job, reference: list[np.ndarray], result: Result, settings: Settings
) -> Contestant | None:
    """Build one contestant and compare its answer; notes into `result`; None if it cannot be timed."""
    try:
        with time_limit(settings.build_limit_s):
            start = time.perf_counter()
            contestant = entry.build()
            value = eval(contestant.statement, contestant.names)
            result.build_s = time.perf_counter() - start
        result.statement = contestant.statement
        for _ in range(contestant.calls - 1):
            value = eval(contestant.statement, contestant.names)
        if reference:
            answers = [np.asarray(a) for a in contestant.answer(value)]
            result.error = relative_error(answers, reference)
            if job.ulps:
                result.max_ulp = largest_ulp(answers[0], reference[0])
            if not result.error <= job.tolerance:
                result.state = "wrong"
                result.detail = f"error {result.error:.2e}, the tolerance is {job.tolerance:.0e}"
    except (Exception, BuildTimeout) as error:
        result.state, result.detail = "failed", describe(error)
        return None
    return contestant


def time_in_turns(
    contestants: dict[str, Contestant], settings: Settings
) -> dict[str, tuple[list[float], int] | Exception]:
    """Seconds a call in each batch, and calls a batch; every round gives each contestant one batch."""
    outcome: dict[str, tuple[list[float], int] | Exception] = {}
    timers: dict[str, timeit.Timer] = {}
    wanted: dict[str, int] = {}
    for peer, contestant in contestants.items():
        timer = contestant.timer()
        try:
            per_call = warm_up(contestant, timer, settings)
        except Exception as error:
            outcome[peer] = error
            continue
        calls = 1 if contestant.before else max(1, int(settings.batch_s / per_call))
        wanted[peer] = settings.batches if per_call < SLOW_CALL else 1
        timers[peer] = timer
        outcome[peer] = ([], calls)

    for turn in range(settings.batches):
        # A different first contestant each round, so that no one always runs after the same neighbor.
        order = list(timers)
        shift = turn % max(1, len(order))
        for peer in order[shift:] + order[:shift]:
            state = outcome[peer]
            if isinstance(state, Exception) or turn >= wanted[peer]:
                continue
            times, calls = state
            time.sleep(settings.settle_s)
            gc.collect()
            try:
                if (before := contestants[peer].before) is not None:
                    before()
                else:
                    timers[peer].timeit(1)  # back into the caches after the others' turns; threads wake up
                times.append(timers[peer].timeit(calls) / calls)
            except Exception as error:
                outcome[peer] = error
    return outcome


def warm_up(contestant: Contestant, timer: timeit.Timer, settings: Settings) -> float:
    """Run for about `warm_s`; seconds a call, as the latest and longest stretch has it."""
    if contestant.before is not None:
        contestant.before()
        return timer.timeit(1)
    spent = latest = timer.timeit(1)
    calls = 1
    while spent < settings.warm_s:
        latest = timer.timeit(calls)
        spent += latest
        latest /= calls
        calls = min(2 * calls, 10_000)
    return latest


def describe(error: BaseException) -> str:
    """The kind of an error and the first lines of what it says."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
