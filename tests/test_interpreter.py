"""The interpreter: values, types, ownership, freeing, errors, fused nodes."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import numpy as np
import pytest

from graphkb.ir.dims import symbol
from graphkb.ir.errors import GraphError, InputError, ShapeError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op
from graphkb.ir.types import DTYPES, FLOATS
from graphkb.ops import elementwise as ew
from graphkb.ops import fused, index, leaf, reduce, shape
from graphkb.runtime.interpreter import Program, evaluate, meaning


def placeholder(*dims: Any, dtype: str = "float32", name: str = "x") -> Node:
    return leaf.placeholder(dims, dtype, name)


def run(inputs: list[Node], outputs: list[Node], *arrays: Any) -> list[np.ndarray[Any, Any]]:
    return Program(Graph(tuple(inputs), tuple(outputs))).run([np.asarray(a) for a in arrays])


def apply(op: Op, *nodes: Node) -> Node:
    return make(op, nodes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(), (0,), (3,), (2, 0, 3), (2, 3)])
def test_results_have_the_exact_type(dtype: str, dims: tuple[int, ...]) -> None:
    x = placeholder(*dims, dtype=dtype)
    value = np.ones(dims, dtype)
    if dtype == "bool":
        outputs = [ew.equal(x, x), make(ew.not_, (x,)), ew.maximum(x, x)]
    else:
        outputs = [x + x, -x, ew.relu(x), x * 2, ew.square(x), make(ew.mod, (x, x))]
    outputs += [ew.cast(x, other) for other in DTYPES]
    for node, result in zip(outputs, run([x], outputs, value)):
        assert type(result) is np.ndarray
        assert (result.dtype.name, result.shape) == (node.dtype, dims)
        assert result.flags.carray


def test_dtype_holds_where_numpy_widens() -> None:
    x = placeholder(3, dtype="int8")
    (total,) = run([x], [reduce.reduce_sum(x, (0,))], np.array([100, 100, 100], np.int8))
    assert (total.dtype, total.item()) == (np.int8, (300 + 128) % 256 - 128)


@pytest.mark.parametrize("dtype", FLOATS)
def test_invalid_values_are_silent(dtype: str) -> None:
    x = placeholder(3, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = run([x], [ew.log(x), 1 / x, ew.cast(x, "int32"), ew.exp(x * 60000)], np.array([-1, 0, np.nan], dtype))
    np.testing.assert_array_equal(got[0], np.array([np.nan, -np.inf, np.nan]))
    np.testing.assert_array_equal(got[1], np.array([-1, np.inf, np.nan]))


def outputs_that_alias() -> dict[str, tuple[Node, Node]]:
    x = placeholder(4, 6)
    return {
        "input": (x, x),
        "reshape": (x, shape.reshape(x, (6, 4))),
        "transpose": (x, shape.transpose(x, (1, 0))),
        "slice": (x, shape.slice_(x, (1, 0), (2, 6))),
        "broadcast": (x, shape.broadcast_to(x, (2, 4, 6))),
        "stop_gradient": (x, ew.stop_gradient(x)),
        "scalar broadcast": (x, shape.broadcast_to(leaf.constant(1.0, "float32"), (3, 3))),
        "view of a result": (x, shape.slice_(x + x, (0, 0), (1, 1))),
    }


@pytest.mark.parametrize("case", outputs_that_alias())
def test_outputs_are_the_callers_own(case: str) -> None:
    x, y = outputs_that_alias()[case]
    value = np.arange(24, dtype=np.float32).reshape(4, 6)
    first, second = run([x], [y, y], value)
    assert first.flags.carray
    assert second.flags.carray
    assert not np.shares_memory(first, value)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, second)
    assert first.base is None or first.base.nbytes <= first.nbytes + 64


def test_outputs_share_nothing_with_variables_and_constants() -> None:
    cell = VariableCell(np.ones(100, np.float32), "w")
    value = np.zeros(100, np.float32)
    program = Program(Graph((), (leaf.variable(cell), leaf.constant(value), leaf.constant(value))))
    first, second = program.run([]), program.run([])
    first[0][:] = 7
    first[1][:] = 7
    assert cell.array[0] == 1
    np.testing.assert_array_equal(second[1], value)
    np.testing.assert_array_equal(first[2], value)
    np.testing.assert_array_equal(program.run([])[1], value)


def test_a_slice_of_an_input_view_is_copied() -> None:
    """The owner of the memory is an array that the caller did not even hand in."""
    whole = np.arange(10, dtype=np.float32)
    x = placeholder(5)
    (got,) = run([x], [shape.reshape(x, (5, 1))], whole[5:])
    assert not np.shares_memory(got, whole)


def test_values_are_freed_at_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second half of a chain runs, the values of the first half are gone."""
    alive: list[weakref.ref[Any]] = []
    counts = []

    def watch(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        counts.append(sum(ref() is not None for ref in alive))
        result = x.copy()
        alive.append(weakref.ref(result))
        return result

    probe = Op("probe", infer=lambda x: x, numpy=watch)
    y = placeholder(1000)
    x = y
    for _ in range(10):
        y = make(probe, (y,))
    run([x], [y], np.zeros(1000, np.float32))
    assert max(counts) == 1


def test_values_that_nobody_needs_are_not_computed() -> None:
    x = placeholder(3, dtype="int32")
    table = placeholder(2, name="table")
    bad = index.gather(table, x)
    graph = Graph((x, table), (x + x,))
    graph = Graph(graph.inputs, graph.outputs, (), "g", [x, table, bad, *graph.outputs])
    (got,) = Program(graph).run([np.array([9, 9, 9], np.int32), np.zeros(2, np.float32)])
    assert got.tolist() == [18, 18, 18]


def test_updates_are_computed_from_old_values() -> None:
    a, b = (VariableCell(np.full(3, value, np.float32), name) for name, value in (("a", 1), ("b", 2)))
    swap = Program(Graph((), (), ((a, leaf.variable(b)), (b, leaf.variable(a)))))
    swap.run([])
    assert (a.array[0], b.array[0]) == (2, 1)
    rotate = Program(Graph((), (leaf.variable(a),), ((a, leaf.variable(a) + leaf.variable(b)), (b, leaf.variable(a)))))
    (shown,) = rotate.run([])
    assert (a.array[0], b.array[0], shown[0]) == (3, 2, 2)


def test_an_update_may_be_a_view_of_its_own_variable() -> None:
    cell = VariableCell(np.arange(4, dtype=np.float32), "w")
    flipped = shape.reverse(leaf.variable(cell), (0,))
    Program(Graph((), (), ((cell, flipped),))).run([])
    assert cell.array.tolist() == [3, 2, 1, 0]


def test_an_update_of_another_shape_is_refused() -> None:
    cell = VariableCell(np.zeros(4, np.float32), "w")
    x = placeholder(3)
    with pytest.raises(GraphError, match=r"the update of 'w' has the type float32\[3\], the variable has float32\[4\]"):
        Program(Graph((x,), (), ((cell, x),)))


def test_an_error_names_the_node_and_the_line() -> None:
    table, i = placeholder(3, name="table"), placeholder(2, dtype="int32", name="i")
    picked = index.gather(table, i)  # the line that is named
    with pytest.raises(IndexError) as caught:
        run([table, i], [picked + 1], np.zeros(3, np.float32), np.array([0, 5], np.int32))
    lines = str(caught.value).splitlines()
    assert lines[0] == "gather: index 5 is out of range for an axis of 3"
    assert lines[1] == "  while executing %2: float32[2] = gather(%0, %1, axis=0)"
    assert lines[2].startswith("  built at test_interpreter.py:")
    assert "the line that is named" in lines[2]


def test_an_error_leaves_variables_alone() -> None:
    a = VariableCell(np.zeros(2, np.float32), "a")
    b = VariableCell(np.zeros(2, np.float32), "b")
    i = placeholder(2, dtype="int32", name="i")
    graph = Graph((i,), (), ((a, leaf.variable(a) + 1), (b, index.gather(leaf.variable(b), i))))
    with pytest.raises(IndexError):
        Program(graph).run([np.array([0, 2], np.int32)])
    assert a.array.tolist() == [0, 0]


class OddError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second)


def test_errors_of_any_type_keep_it() -> None:
    def fail(kind: Exception) -> Node:
        def numpy(x: Any) -> Any:
            raise kind

        return make(Op("fail", infer=lambda x: x, numpy=numpy), (placeholder(1),))

    for error, expected in [
        (MemoryError("full"), MemoryError),
        (np.exceptions.AxisError(3, 2), ValueError),
        (KeyError("k"), KeyError),
        (UnicodeDecodeError("utf8", b"", 0, 1, "odd"), UnicodeDecodeError),
    ]:
        node = fail(error)
        with pytest.raises(expected) as caught:
            Program(Graph(node.inputs, (node,))).run([np.zeros(1, np.float32)])
        notes = "".join(getattr(caught.value, "__notes__", ()))
        assert "while executing %1: float32[1] = fail(%0)" in str(caught.value) + notes
    # A type outside of graphkb and Python becomes its nearest built-in one.
    node = fail(OddError(1, 2))
    with pytest.raises(Exception, match="while executing") as caught:
        Program(Graph(node.inputs, (node,))).run([np.zeros(1, np.float32)])
    assert isinstance(caught.value.__cause__, OddError)


def test_a_wrong_shape_is_caught() -> None:
    liar = Op("liar", infer=lambda x: x, numpy=lambda x: x[:1])
    x = placeholder(3)
    with pytest.raises(GraphError, match=r"the result has the shape \(1,\), it should be \(3,\)"):
        run([x], [make(liar, (x,))], np.zeros(3, np.float32))


def test_unknown_sizes_and_placeholders_are_refused() -> None:
    n = symbol("n")
    x = placeholder(n)
    with pytest.raises(InputError, match="depends on sizes that only the inputs of a function tell"):
        Program(Graph((x,), (x + x,)))
    with pytest.raises(InputError, match="depends on sizes"):
        evaluate([leaf.size(n)])
    with pytest.raises(InputError, match="the value of the placeholder 'x' is needed"):
        evaluate([placeholder(3) * 2])
    with pytest.raises(ShapeError, match="a size is negative"):
        evaluate([make(leaf.IOTA, (), {"size": -1, "dtype": "int32"})])


def test_evaluate() -> None:
    cell = VariableCell(np.array([1.0, 2.0], np.float32), "w")
    w = leaf.variable(cell)
    got = evaluate([w, w * 2, reduce.reduce_sum(w, (0,)), leaf.iota(3, "int64")])
    assert [g.tolist() for g in got] == [[1, 2], [2, 4], 3, [0, 1, 2]]
    assert [g.dtype.name for g in got] == ["float32", "float32", "float32", "int64"]
    got[0][:] = 9
    assert cell.array.tolist() == [1, 2]


def fuse(inputs: list[Node], build: Any) -> Node:
    parameters = tuple(leaf.placeholder(i.shape, i.dtype, f"p{k}") for k, i in enumerate(inputs))
    return fused.fused(tuple(inputs), Graph(parameters, (build(*parameters),), (), "body"))


def test_fused_nodes_run_their_bodies() -> None:
    x, y = placeholder(3), placeholder(3, name="y")
    cell = VariableCell(np.full(3, 10, np.float32), "w")
    inner = fuse([x, y], lambda a, b: fuse([b, a], lambda c, d: c - d) * leaf.variable(cell) + ew.relu(a))
    program = Program(Graph((x, y), (inner, inner + x)))
    got = program.run([np.array([1, 2, -3], np.float32), np.array([1, 1, 1], np.float32)])
    assert got[0].tolist() == [1, -8, 40]
    assert got[1].tolist() == [2, -6, 37]
    assert program.reads


def test_a_fused_body_may_be_used_twice_and_return_an_input() -> None:
    x, y = placeholder(2), placeholder(2, name="y")
    parameter = placeholder(2, name="p")
    body = Graph((parameter,), (parameter * 3,))
    same = Graph((parameter,), (parameter,))
    outputs = [fused.fused((x,), body), fused.fused((y,), body), fused.fused((x,), same)]
    got = run([x, y], outputs, np.array([1, 2], np.float32), np.array([3, 4], np.float32))
    assert [g.tolist() for g in got] == [[3, 6], [9, 12], [1, 2]]


def test_an_error_in_a_body_names_the_inner_node() -> None:
    table, i = placeholder(3, name="table"), placeholder(2, dtype="int32", name="i")
    node = fuse([table, i], lambda t, j: index.gather(t, j))
    with pytest.raises(IndexError, match=r"while executing %2: float32\[2\] = gather\(%0, %1, axis=0\)\n  built at"):
        run([table, i], [node], np.zeros(3, np.float32), np.array([0, 5], np.int32))


def test_meaning_of_one_node() -> None:
    x = placeholder(2, 3)
    total = meaning(reduce.reduce_sum(x, (1,)))
    assert total(np.ones((2, 3), np.float32)).tolist() == [3, 3]
    both = meaning(fuse([x, x], lambda a, b: a - b * 2))
    assert both(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))[0].tolist() == [-1, -1, -1]
    assert meaning(ew.square(placeholder()))(np.array(3, np.float32)).shape == ()


def test_a_program_keeps_nothing_of_a_run() -> None:
    x = placeholder(1000)
    program = Program(Graph((x,), (x + x,)))
    value = np.zeros(1000, np.float32)
    ref = weakref.ref(program.run([value])[0])
    gc.collect()
    assert ref() is None
