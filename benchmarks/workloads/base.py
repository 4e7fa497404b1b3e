"""The kinds of workloads: forward computations, training steps, compilation, processes, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from benchmarks.harness import Contestant, Entry, Job
from benchmarks.peers.base import Arrays, Peer, Training


class Workload(Protocol):
    """Anything that can name itself and make a Job for some peers."""

    @property
    def name(self) -> str: ...

    def job(self, peers: Sequence[Peer]) -> Job: ...


def double(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [a.astype(np.float64) for a in arrays]


@dataclass(frozen=True)
class Layout:
    """How a library wants its arrays, where its best order of axes is not that of the workload; outside the timing.

    inputs, params: from the workload's order.
    outputs: back to it, from what the library gives; in training from the weights.
    """

    inputs: Callable[[Arrays], Arrays] = lambda arrays: arrays
    params: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]] = lambda arrays: arrays
    outputs: Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]] = lambda arrays: arrays

    def restored(self, contestant: Contestant) -> Contestant:
        """A contestant whose answer has the workload's order."""
        answer = contestant.answer
        return replace(contestant, answer=lambda value: self.outputs(answer(value)))


AS_IT_IS = Layout()


@dataclass(frozen=True)
class Forward:
    """A pure computation.

    inputs: makes the named arrays that each call gets.
    params: makes the arrays that the library holds as weights.
    reference: (*params, *inputs) in float64 -> the answer.
    tolerance: the largest |answer - reference| over the largest |reference|.
    expressions: dialect -> expression(library, *params, *inputs), a string for numexpr. A dialect that is not
        there does not take part.
    summary: what of an answer is compared, for random numbers; None compares all of it.
    layouts: dialect -> its order of axes.
    """

    name: str
    what: str
    inputs: Callable[[], Arrays]
    reference: Callable[..., np.ndarray]
    tolerance: float
    expressions: Mapping[str, Any]
    params: Callable[[], Sequence[np.ndarray]] = tuple
    ulps: bool = False
    summary: Callable[[np.ndarray], np.ndarray] | None = None
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def job(self, peers: Sequence[Peer]) -> Job:
        inputs, params = self.inputs(), self.params()

        def entry(peer: Peer) -> Entry:
            layout = self.layouts.get(peer.dialect, AS_IT_IS)
            arrays, weights = layout.inputs(inputs), layout.params(params)
            return Entry(
                peer.name,
                lambda: self._summed_up(layout.restored(peer.forward(self.expressions[peer.dialect], arrays, weights))),
            )

        def reference() -> list[np.ndarray]:
            return [np.asarray(self.reference(*double(params), *double(list(inputs.values()))))]

        entries = [entry(peer) for peer in peers if peer.dialect in self.expressions]
        return Job(self.name, self.what, entries, reference, self.tolerance, self.ulps)

    def _summed_up(self, contestant: Contestant) -> Contestant:
        summary, answer = self.summary, contestant.answer
        if summary is not None:
            contestant.answer = lambda value: [summary(np.asarray(a)) for a in answer(value)]
        return contestant


@dataclass(frozen=True)
class TrainingStep:
    """One step of SGD with momentum; what is checked is the change of the weights after three steps.

    gradients: (params, *inputs) -> a gradient for each weight, in their dtype: NumPy's way and the reference.
    losses: dialect -> loss(library, params, *inputs), differentiated by the library itself.
    layouts: dialect -> its order of axes.
    """

    name: str
    what: str
    inputs: Callable[[], Arrays]
    params: Callable[[], Sequence[np.ndarray]]
    gradients: Callable[..., Sequence[np.ndarray]]
    tolerance: float
    losses: Mapping[str, Any]
    rate: float = 0.01
    momentum: float = 0.9
    steps: int = 3
    layouts: Mapping[str, Layout] = field(default_factory=dict)

    def job(self, peers: Sequence[Peer]) -> Job:
        inputs, params = self.inputs(), self.params()
        losses = {**self.losses, "numpy": self.gradients}

        def entry(peer: Peer) -> Entry:
            layout = self.layouts.get(peer.dialect, AS_IT_IS)
            arrays, weights = layout.inputs(inputs), layout.params(params)
            training = Training(losses[peer.dialect], weights, arrays, self.rate, self.momentum, self.steps)
            return Entry(peer.name, lambda: layout.restored(peer.training(training)))

        def reference() -> list[np.ndarray]:
            weights, arrays = double(params), double(list(inputs.values()))
            velocities = [np.zeros_like(w) for w in weights]
            for _ in range(self.steps):
                gradients = self.gradients(weights, *arrays)
                velocities = [self.momentum * v - self.rate * g for v, g in zip(velocities, gradients)]
                weights = [w + v for w, v in zip(weights, velocities)]
            return [w - p for w, p in zip(weights, double(params))]

        entries = [entry(peer) for peer in peers if peer.dialect in losses]
        return Job(self.name, self.what, entries, reference, self.tolerance)


NO_COMPILERS = ("numpy", "numexpr", "torch_eager")


def one_each(peers: Sequence[Peer], code: Mapping[str, str]) -> list[Peer]:
    """The first peer of each dialect that has code."""
    first: dict[str, Peer] = {}
    for peer in peers:
        if peer.dialect in code:
            first.setdefault(peer.dialect, peer)
    return list(first.values())


@dataclass(frozen=True)
class Compile:
    """Seconds from nothing to the first answer of another workload; caches are emptied before each time."""

    name: str
    of: Forward | TrainingStep

    def job(self, peers: Sequence[Peer]) -> Job:
        compiled = [peer for peer in peers if peer.name not in NO_COMPILERS]
        inner = {entry.peer: entry for entry in self.of.job(compiled).entries}

        def entry(peer: Peer) -> Entry:
            def first_call() -> Any:
                contestant = inner[peer.name].build()
                return eval(contestant.statement, contestant.names)

            return Entry(peer.name, lambda: Contestant("f()", {"f": first_call}, before=peer.forget))

        entries = [entry(peer) for peer in compiled if peer.name in inner]
        return Job(self.name, f"build, compile and first call of {self.of.name}", entries)


def run_python(code: str) -> str:
    """What a fresh Python prints; RuntimeError with the last line of its errors if it fails."""
    # Installed libraries have their bytecode on disk; so has a checkout unless it is forbidden to write it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    return done.stdout


@dataclass(frozen=True)
class Process:
    """Seconds that a fresh Python takes for one line of code, the start of Python included."""

    name: str
    what: str
    code: Mapping[str, str] = field(default_factory=dict)  # dialect -> a line of Python

    def job(self, peers: Sequence[Peer]) -> Job:
        def entry(peer: Peer) -> Entry:
            names = {"run": run_python, "code": self.code[peer.dialect]}
            return Entry(peer.name, lambda: Contestant("run(code)", names, before=lambda: None))

        return Job(self.name, self.what, [entry(peer) for peer in one_each(peers, self.code)])


@dataclass(frozen=True)
class Figure:
    """A number that a fresh Python prints.

    code: dialect -> a line of Python that prints it.
    """

    name: str
    what: str
    code: Mapping[str, str]
    unit: str

    def job(self, peers: Sequence[Peer]) -> Job:
        def entry(peer: Peer) -> Entry:
            names = {"run": run_python, "code": self.code[peer.dialect]}
            return Entry(peer.name, lambda: Contestant("run(code)", names))

        return Job(self.name, self.what, [entry(peer) for peer in one_each(peers, self.code)], unit=self.unit)


@dataclass(frozen=True)
class Memory:
    """Kilobytes that stay behind per object made and dropped, in a fresh process.

    code: dialect -> Python that defines make(i), which makes and uses one compiled function.
    """

    name: str
    what: str
    code: Mapping[str, str]
    count: int = 1000

    def job(self, peers: Sequence[Peer]) -> Job:
        def entry(peer: Peer) -> Entry:
            code = self.code[peer.dialect] + MEMORY_LOOP.format(count=self.count, first=self.count // 5)
            return Entry(peer.name, lambda: Contestant("run(code)", {"run": run_python, "code": code}))

        return Job(self.name, self.what, [entry(peer) for peer in one_each(peers, self.code)], unit="kB")


def installed_mb(distribution: str) -> float:
    """Megabytes on disk of a distribution and all that it needs, NumPy aside; symbolic links count for nothing.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed.
    """
    from importlib import metadata

    from packaging.requirements import Requirement

    pending, files = [metadata.distribution(distribution)], set[str]()
    seen = {"numpy", distribution}
    while pending:
        found = pending.pop()
        files |= {os.path.realpath(str(found.locate_file(file))) for file in found.files or ()}
        for needed in map(Requirement, found.requires or ()):
            name = needed.name.lower().replace("_", "-")
            if name in seen or (needed.marker is not None and not needed.marker.evaluate({"extra": ""})):
                continue
            seen.add(name)
            try:
                pending.append(metadata.distribution(name))
            except metadata.PackageNotFoundError:
                continue  # what is not there takes no room
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file)) / 1e6


@dataclass(frozen=True)
class Size:
    """Megabytes on disk that a library brings, with all that it needs but NumPy.

    distributions: dialect -> the name of its distribution.
    """

    name: str
    what: str
    distributions: Mapping[str, str]

    def job(self, peers: Sequence[Peer]) -> Job:
        def entry(peer: Peer) -> Entry:
            names = {"installed_mb": installed_mb, "name": self.distributions[peer.dialect]}
            return Entry(peer.name, lambda: Contestant("installed_mb(name)", names))

        return Job(self.name, self.what, [entry(peer) for peer in one_each(peers, self.distributions)], unit="MB")


# The first fifth fills allocator pools and caches of bounded size; what grows after that grows for ever.
MEMORY_LOOP = """
import gc

def resident_kb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

for i in range({first}):
    make(i)
gc.collect()
before = resident_kb()
for i in range({count}):
    make(i)
gc.collect()
print((resident_kb() - before) / {count})
"""
