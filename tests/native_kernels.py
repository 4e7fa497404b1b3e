"""Compiles one expression over arrays for the tests of code generation."""

import ctypes
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.engine import compile_module
from graphkb.codegen.target import TARGETS, Target, host_target

pytest.importorskip("llvmlite")

LEVELS = [
    t for t in ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4") if host_target().name >= t and host_target().is_x86
] or [host_target().name]


def level(name: str) -> Target:
    """A target that this machine runs, by name."""
    return host_target() if name == host_target().name else TARGETS[name]


def elementwise(
    expression: Callable[..., Value],
    dtypes: Sequence[str],
    out: str,
    target: Target | None = None,
    lanes: int | None = None,
) -> Callable[..., np.ndarray]:
    """A function of arrays that applies `expression(b, *values)` to vectors of `lanes`, then to single elements."""
    target = target or host_target()
    width = lanes or target.lanes(dtypes[0])
    b = Builder(target)
    params = [(f"x{i}", "ptr") for i in range(len(dtypes))]
    with b.function("kernel", [*params, ("y", "ptr"), ("n", "int64")]) as (*sources, y, n):

        def rounds(count: int) -> Callable[[Value], None]:
            def body(i: Value) -> None:
                values = [b.load(b.gep(p, i, d), d, count) for p, d in zip(sources, dtypes)]
                b.store(expression(b, *values), b.gep(y, i, out))

            return body

        main = b.isub(n, b.remainder(n, b.const(width, "int64")))
        b.loop(b.const(0, "int64"), main, width, rounds(width))
        b.loop(main, n, 1, rounds(1))
        b.ret()
    engine = compile_module(b.module(), target)
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(dtypes) + 1), ctypes.c_int64)
    native = kind(engine.address("kernel"))

    def run(*arrays: np.ndarray) -> np.ndarray:
        held = [np.ascontiguousarray(a, dtype=d) for a, d in zip(arrays, dtypes)]
        result = np.empty(held[0].shape, out)
        native(*(a.ctypes.data for a in held), result.ctypes.data, result.size)
        return result

    run.engine = engine  # type: ignore[attr-defined]
    return run
