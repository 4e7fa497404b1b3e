"""What a program may compute: its interpreted values, and how far they move when every rounding goes another way.

An optimized or compiled program may round elsewhere, so its results differ. How much is right depends on the program:
after a cancellation nothing may be left, and before a comparison a last bit decides. So the program is run several
times with noise of the size of the rounding errors in each inexact result. Where that moves a result, so far a
result may be off; where it moves nothing, as in all integer programs, results must be equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from contracts import all_contracts, widen
from evaluate import Array, interpret
from programs import RandomProgram

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.types import FLOATS, INTEGERS
from graphkb.passes.pipeline import optimize

RUNS = 6
# How far beyond the spread of the noisy runs a result may lie.
SLACK = 8.0
CONTRACTS = {c.op: c for c in all_contracts()}
ROUNDED_ONCE = {"add", "sub", "mul", "div", "square", "reciprocal", "sqrt"}


@dataclass(frozen=True)
class Expectation:
    """The values of a program's roots, with those of its noisy runs.

    `stable` are those of the program with stable formulas: where the raw one overflows, they need not.
    """

    values: list[Array]
    noisy: list[list[Array]]
    stable: Expectation | None = None

    def check(self, actual: Sequence[Array], what: str, stabilized: bool = False) -> None:
        """Assert that results are right; `what` says whose they are.

        Right after formulas were made stable, there is nothing to compare finite results with where the raw program
        overflows.
        """
        assert len(actual) == len(self.values)
        for i, (result, expected) in enumerate(zip(actual, self.values)):
            runs = [run[i] for run in self.noisy]
            assert result.dtype == expected.dtype, f"{what}\nroot {i} is {result.dtype}, not {expected.dtype}"
            assert result.shape == expected.shape, f"{what}\nroot {i} has shape {result.shape}, not {expected.shape}"
            wrong = differs(result, expected, runs)
            if self.stable is not None:
                wrong &= differs(result, self.stable.values[i], [run[i] for run in self.stable.noisy])
            if stabilized and expected.dtype.kind == "f":
                wrong &= np.isfinite(expected) | ~np.isfinite(result)
            if wrong.any():
                at = tuple(int(k) for k in np.argwhere(wrong)[0])
                near = ", ".join(repr(r[at]) for r in runs)
                raise AssertionError(
                    f"{what}\nroot {i} at {at} is {result[at]!r}, not {expected[at]!r} (with noise {near})"
                )


@np.errstate(all="ignore")
def differs(result: Array, expected: Array, runs: Sequence[Array]) -> Array:
    """Where a result is not what it may be."""
    if expected.dtype.kind != "f":
        unsure = np.any([run != expected for run in runs], axis=0)
        return np.asarray((result != expected) & ~unsure)
    finite = np.isfinite(expected)
    unsure = np.any([np.isfinite(run) != finite for run in runs], axis=0)
    unsure |= np.any([~finite & (run != expected) & ~(np.isnan(run) & np.isnan(expected)) for run in runs], axis=0)
    exact = expected.astype(np.longdouble)
    spread = np.max([np.abs(run.astype(np.longdouble) - exact) for run in runs], axis=0)
    spacing = np.spacing(np.abs(np.where(finite, expected, 0)).astype(expected.dtype)).astype(np.longdouble)
    near = np.abs(result.astype(np.longdouble) - exact) <= SLACK * spread + 4 * spacing * (spread > 0)
    same = (result == expected) | (np.isnan(result) & np.isnan(expected))
    return np.asarray(~(same | unsure | (finite & np.isfinite(result) & near)))


def expect(program: RandomProgram, graph: Graph | None = None, stable: bool = True) -> Expectation:
    """Interpret a program, and again with noise; `graph` is what passes made of it."""
    graph, feeds = graph or program.bound, program.feeds
    noisy = [interpret(graph, feeds, Noise(np.random.default_rng(seed), 1.0 + 7 * (seed % 2))) for seed in range(RUNS)]
    values, runs = program.results(graph, interpret(graph, feeds)), [program.results(graph, run) for run in noisy]
    return Expectation(values, runs, expect(program, optimize(graph), False) if stable else None)


def _terms(node: Node, inputs: Sequence[Array], value: Array) -> int:
    """How many numbers each element of the result adds up."""
    match node.op.name:
        case "dot":
            return prod(inputs[0].shape[a] for a in node.attrs["contract_x"])
        case "conv":
            return prod(inputs[1].shape[: len(node.attrs["strides"])]) * inputs[1].shape[-2]
        case "window_sum":
            return prod(node.attrs["window"])
        case _:
            return max(1, inputs[0].size // max(1, value.size))


@dataclass(frozen=True)
class Noise:
    """Moves what an op gave by `strength` times what it may be off; by more than once, so that no rounding hides it."""

    rng: np.random.Generator
    strength: float

    def __call__(self, node: Node, value: Array, inputs: Sequence[Array]) -> Array:
        contract = CONTRACTS[node.op.name]
        if node.op.name == "cast":
            return self._cast(value, inputs[0])
        if node.dtype not in FLOATS or contract.ulp == 0:
            return value
        if node.op.name in ROUNDED_ONCE:
            exact = np.asarray(contract.reference(*[widen(a) for a in inputs], **node.attrs))
            return self._moved(value, value, 1.0, exact != value)
        if contract.scale is not None:
            scale = contract.scale(*[widen(a) for a in inputs], **node.attrs)
            terms = _terms(node, inputs, value)
            return self._moved(value, np.asarray(scale).astype(value.dtype), terms**0.5 + 1, terms > 1)
        if contract.ulp > 0.5:
            return self._moved(value, value, min(contract.ulp, 4.0), value != 0)
        return value

    def _moved(self, value: Array, scale: Array, units: float, where: Any) -> Array:
        steps = self.strength * self.rng.uniform(-units, units, value.shape)
        moved = value + np.spacing(np.abs(scale)).astype(np.longdouble) * steps
        keep = ~np.isfinite(value) | ~np.isfinite(scale) | ~np.asarray(where)
        return np.asarray(np.where(keep, value, moved.astype(value.dtype)), value.dtype)

    def _cast(self, value: Array, x: Array) -> Array:
        """What an integer makes of a float that it can not hold is not defined: any number will do."""
        if value.dtype.name not in INTEGERS or x.dtype.kind != "f":
            return value
        info = np.iinfo(value.dtype)
        wide = np.trunc(x.astype(np.longdouble))
        held = (wide >= info.min) & (wide <= info.max)
        return np.where(held, value, self.rng.integers(info.min, info.max, value.shape, value.dtype, endpoint=True))
