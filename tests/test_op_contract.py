"""Every op keeps its contract: types, values against an independent reference, gradients against differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from contracts import Array, Case, Contract, all_contracts, widen
from evaluate import (
    BACKENDS,
    atom_of,
    describe,
    evaluate,
    finite_differences,
    interpret,
    placeholders,
    ulp_error,
    wrap,
)

from graphkb.codegen.vecmath import MAX_ULP
from graphkb.gradients import gradients
from graphkb.ir.dims import Dim, Symbol, symbol
from graphkb.ir.errors import DTypeError
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ir.op import all_ops, find_op
from graphkb.ir.types import DTYPES, FLOATS, INTEGERS, is_float
from graphkb.ops import leaf, reduce
from graphkb.runtime.function import Function

CONTRACTS = all_contracts()
BY_NAME = {c.op: c for c in CONTRACTS}
# Values come from the caller, bodies are programs, guards stand before kernels only: other tests hold these.
WITHOUT_CONTRACT = {"placeholder", "fused", "chain", "guard"}
# Attributes that hold sizes, and may be symbolic.
SIZE_ATTRS = {"shape", "sizes", "size", "dim"}


def names(contracts: Sequence[Contract] = CONTRACTS) -> list[str]:
    return [c.op for c in contracts]


def cases_of(contract: Contract, dtype: str) -> list[Case]:
    return list(contract.cases(dtype, np.random.default_rng(crc32(f"{contract.op} {dtype}".encode()))))


def reference_of(contract: Contract, case: Case) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(contract.reference(*[widen(a) for a in case.inputs], **case.attrs))


def test_every_op_has_a_contract() -> None:
    ops = {op.name for op in all_ops() if not op.name.startswith("test_")}  # other tests define some of their own
    assert ops - WITHOUT_CONTRACT == set(BY_NAME)
    assert len(BY_NAME) == len(CONTRACTS)


# ---------------------------------------------------------------------------------------------- types
@pytest.mark.parametrize("name", names())
def test_inferred_types_are_those_of_the_values(name: str) -> None:
    contract, op = BY_NAME[name], find_op(name)
    assert op.numpy is not None
    for dtype in contract.dtypes:
        for case in cases_of(contract, dtype):
            inputs = tuple(placeholders(case.inputs))
            node = contract.apply(inputs, case.attrs)
            with np.errstate(all="ignore"):
                if contract.build is None:
                    value = np.asarray(op.numpy(*case.inputs, **case.attrs))
                else:
                    (value,) = interpret(Graph(inputs, (node,)), case.inputs)
            assert (value.dtype.name, value.shape) == (node.dtype, node.shape), (dtype, case)
            assert reference_of(contract, case).shape == node.shape, (dtype, case)


@pytest.mark.parametrize("name", names())
def test_types_inferred_with_unknown_sizes_agree_once_bound(name: str) -> None:
    contract = BY_NAME[name]
    for case in cases_of(contract, contract.dtypes[-1]):
        concrete = contract.apply(placeholders(case.inputs), case.attrs).type
        for shared in (True, False) if not SIZE_ATTRS & set(case.attrs) else (True,):
            bindings: dict[Symbol, Dim] = {}
            by_value: dict[int, Dim] = {}

            def unknown(
                n: int, shared: bool = shared, by_value: dict[int, Dim] = by_value, to: dict[Symbol, Dim] = bindings
            ) -> Dim:
                if not shared or n not in by_value:
                    by_value[n] = symbol(f"n{n}")
                    to[atom_of(by_value[n])] = n
                return by_value[n]

            inputs = tuple(
                leaf.placeholder(tuple(unknown(n) for n in a.shape), a.dtype.name, f"x{i}")
                for i, a in enumerate(case.inputs)
            )
            attrs = {
                k: (tuple(map(unknown, v)) if isinstance(v, tuple) else unknown(v)) if k in SIZE_ATTRS else v
                for k, v in case.attrs.items()
            }
            graph = Graph(inputs, (contract.apply(inputs, attrs),))
            assert graph.outputs[0].ndim == len(concrete.shape)
            assert graph.bind(bindings).outputs[0].type == concrete, case


@pytest.mark.parametrize("name", names([c for c in CONTRACTS if find_op(c.op).kind != "leaf"]))
def test_other_dtypes_are_refused(name: str) -> None:
    contract = BY_NAME[name]
    sample = next(iter(cases_of(contract, contract.dtypes[0])))
    for dtype in set(DTYPES) - set(contract.dtypes):
        moved = placeholders([a.astype(dtype) for a in sample.inputs])
        with pytest.raises(DTypeError, match=dtype):
            contract.apply(moved, sample.attrs)


# ---------------------------------------------------------------------------------------------- values
def check(contract: Contract, case: Case, actual: Array, backend: str) -> None:
    """Assert that a result is right within the contract's bound."""
    expected = reference_of(contract, case)
    assert actual.shape == expected.shape
    if actual.dtype == bool:
        np.testing.assert_array_equal(actual, expected.astype(bool))
    elif actual.dtype.name in INTEGERS:
        flat = [wrap(int(v), actual.dtype.name) for v in expected.ravel()]
        np.testing.assert_array_equal(actual, np.asarray(flat, actual.dtype).reshape(actual.shape))
    else:
        check_floats(contract, case, actual, expected.astype(np.longdouble), backend)


@np.errstate(all="ignore")
def check_floats(contract: Contract, case: Case, actual: Array, expected: Array, backend: str) -> None:
    if contract.scale is None:
        error = ulp_error(actual, expected)
    else:
        scale = np.asarray(contract.scale(*[widen(a) for a in case.inputs], **case.attrs)).astype(actual.dtype)
        distance = np.abs(actual.astype(np.longdouble) - expected)
        error = np.asarray(distance / np.spacing(scale), float)
    if error.size:
        worst = np.unravel_index(int(np.argmax(error)), error.shape)
        bound = bound_of(contract, actual.dtype.name, backend)
        assert error[worst] <= bound, (
            f"{contract.op} {actual.dtype} is wrong by {error[worst]:.3g} ULP at {worst}: {actual[worst]!r}, "
            f"not {expected[worst]!r}" + operands(contract, case, worst)
        )
    if contract.zero_sign:
        zero = (actual == 0) & (expected.astype(actual.dtype) == 0) & (contract.scale is None)
        wrong = zero & (np.signbit(actual) != np.signbit(expected))
        assert not wrong.any(), f"{contract.op}: the sign of a zero at {np.argwhere(wrong)[0]}"


def operands(contract: Contract, case: Case, index: Any) -> str:
    return f" of {describe(index, case.inputs)}" if find_op(contract.op).kind == "elementwise" else f" of {case}"


def bound_of(contract: Contract, dtype: str, backend: str) -> float:
    """The allowed error: vector math states its own, half precision rounds once, other results may round twice."""
    bound = contract.ulp
    if backend == "native":
        bound = MAX_ULP.get((contract.op, dtype), bound)
    if dtype == "float16" and contract.scale is not None:
        return 0.6  # added up in float32 or better
    if dtype == "float16" and 0.5 < bound < 16:
        return 1.0
    return bound + 0.01 if bound else 0.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", names())
def test_values_equal_the_reference(name: str, backend: str) -> None:
    contract = BY_NAME[name]
    for dtype in contract.dtypes:
        cases = cases_of(contract, dtype)
        # One graph for all cases: it is compiled once.
        inputs = [placeholders(c.inputs, f"c{i}_") for i, c in enumerate(cases)]
        outputs = tuple(contract.apply(p, c.attrs) for p, c in zip(inputs, cases))
        graph = Graph(tuple(itertools.chain(*inputs)), outputs)
        feeds = [a for c in cases for a in c.inputs]
        for case, actual in zip(cases, evaluate(graph, feeds, backend), strict=True):
            check(contract, case, actual, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "axis"), [((4096, 2), 0), ((2, 4096), 1)])
def test_half_precision_adds_up_in_single(shape: tuple[int, int], axis: int, backend: str) -> None:
    x = np.ones(shape, "float16")
    inputs = tuple(placeholders([x]))
    running = make(find_op("cumsum"), inputs, {"axis": axis, "exclusive": False, "reverse": False})
    total = reduce.reduce_sum(inputs[0], (axis,))
    sums, steps = evaluate(Graph(inputs, (total, running)), [x], backend)
    assert sums.tolist() == [4096, 4096]
    assert steps.max() == 4096


# Kernels of the loop language, and products.
NATIVE_KINDS = {"elementwise", "view", "reduce", "dot", "index", "move"}


@pytest.mark.parametrize("name", names([c for c in CONTRACTS if find_op(c.op).kind in NATIVE_KINDS]))
def test_kernels_are_native(name: str) -> None:
    contract, op = BY_NAME[name], find_op(name)
    for dtype in contract.dtypes:
        case = next(c for c in cases_of(contract, dtype) if all(a.size > 1 for a in c.inputs))
        inputs = tuple(placeholders(case.inputs))
        function = Function(Graph(inputs, (make(op, inputs, case.attrs),)), options={"mode": "native"})
        function(list(case.inputs))
        report = function.report()
        assert report.interpreted == 0, report


def special_values(dtype: str) -> Array:
    if dtype == "bool":
        return np.array([False, True])
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        values = {info.min, info.min + 1, info.max, info.max - 1, info.max // 2, 0, 1, 2, 3, 7}
        return np.array(sorted(values | ({-1, -2, -3, -7} if info.min else set())), dtype)
    info = np.finfo(dtype)
    positive = [0, info.smallest_subnormal, info.tiny, info.eps, 0.3, 0.5, 1 - info.epsneg, 1, 1 + info.eps, 1.5, 2]
    positive += [2.5, 3, 10, 100, 1e4, info.max, np.inf]
    return np.array([-v for v in reversed(positive)] + positive + [np.nan], dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", names([c for c in CONTRACTS if c.special]))
def test_special_values_are_those_of_numpy(name: str, backend: str) -> None:
    contract, op = BY_NAME[name], find_op(name)
    for dtype in contract.dtypes:
        values = special_values(dtype)
        count = len(cases_of(contract, dtype)[0].inputs)
        case = Case(tuple(a.ravel() for a in np.meshgrid(*[values] * count)))
        inputs = tuple(placeholders(case.inputs))
        (actual,) = evaluate(Graph(inputs, (make(op, inputs),)), case.inputs, backend)
        check(contract, case, actual, backend)


BINARY = [c for c in CONTRACTS if c.special and "float32" in c.dtypes and len(cases_of(c, "float32")[0].inputs) == 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", names(BINARY))
def test_one_operand_for_all_is_as_good_as_many_equal_ones(name: str, backend: str) -> None:
    contract, op = BY_NAME[name], find_op(name)
    values = special_values("float32")
    x, one = placeholders([values, values[0]])
    function = Function(Graph((x, one), (make(op, (x, one)), make(op, (one, x)))), options={"mode": backend})
    for value in values:
        many = np.full_like(values, value)
        for operands, actual in zip(((values, many), (many, values)), function([values, value])):
            check(contract, Case(operands), actual, backend)


# ---------------------------------------------------------------------------------------------- gradients
def smooth_cases(contract: Contract) -> Iterator[Case]:
    for case in cases_of(contract, "float64"):
        if all(a.size <= 30 for a in case.inputs) and case.attrs.get("dtype", "float64") in FLOATS:
            yield case


def weighted(node: Node, rng: np.random.Generator) -> Node:
    """The sum of a node's elements with random weights."""
    weights = leaf.constant(rng.uniform(0.5, 1.5, node.shape).astype(node.dtype))
    return reduce.reduce_sum(node * weights, tuple(range(node.ndim)))


def check_gradient(total: Node, inputs: Sequence[Node], feeds: Sequence[Array], node: Node, step: float) -> Node:
    """Assert that the gradient of a scalar is what its differences say; returns the gradient."""
    (gradient,) = gradients([total], [node])
    assert gradient is not None
    assert gradient.type == node.type
    position = list(inputs).index(node)

    def at(x: Array) -> Array:
        return interpret(Graph(tuple(inputs), (total,)), [*feeds[:position], x, *feeds[position + 1 :]])[0]

    (actual,) = interpret(Graph(tuple(inputs), (gradient,)), feeds)
    expected = finite_differences(at, np.asarray(feeds[position], float), step)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-7)
    return gradient


@pytest.mark.parametrize("name", names([c for c in CONTRACTS if c.smooth]))
def test_gradients_equal_finite_differences(name: str) -> None:
    contract = BY_NAME[name]
    rng = np.random.default_rng(5)
    # A cast to float16 or float32 has steps: only its gradient's type is tested.
    cases = [c for c in smooth_cases(contract) if c.attrs.get("dtype", "float64") == "float64"]
    assert len(cases) >= 3
    for case in cases:
        inputs = placeholders(case.inputs)
        total = weighted(contract.apply(inputs, case.attrs), rng)
        for position in contract.smooth:
            if position >= len(inputs):
                continue
            gradient = check_gradient(total, inputs, case.inputs, inputs[position], 1e-4)
            if case.inputs[position].size > 8:
                continue
            second = weighted(gradient, rng)
            for other in contract.smooth:
                if other < len(inputs) and gradients([second], [inputs[other]])[0] is not None:
                    check_gradient(second, inputs, case.inputs, inputs[other], 1e-3)


@pytest.mark.parametrize("name", names())
def test_gradients_have_the_types_of_their_inputs_and_are_none_elsewhere(name: str) -> None:
    contract = BY_NAME[name]
    for dtype in contract.dtypes:
        for case in cases_of(contract, dtype):
            inputs = placeholders(case.inputs)
            node = contract.apply(inputs, case.attrs)
            for position, gradient in enumerate(gradients([node], inputs)):
                smooth = position in contract.smooth or name == "concatenate" or name == "sign"
                if smooth and is_float(dtype) and is_float(node.dtype):
                    assert gradient is not None
                    assert gradient.type == inputs[position].type
                else:
                    assert gradient is None
