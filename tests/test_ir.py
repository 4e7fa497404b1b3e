"""The graph layer: interning, pickling, verification, the text form, threads and provenance."""

from __future__ import annotations

import gc
import inspect
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluate import atom_of, interpret

from graphkb.ir.dims import symbol
from graphkb.ir.errors import DTypeError, GraphError, ShapeError
from graphkb.ir.graph import Graph, toposort
from graphkb.ir.leaves import Constant, VariableCell
from graphkb.ir.node import Node, interned_count, make
from graphkb.ir.op import find_op
from graphkb.ir.origin import INTERNAL_FOLDERS, current_origin, name_scope
from graphkb.ir.text import format_graph
from graphkb.ir.types import DTYPES, NUMBERS, TensorType, dtype_name
from graphkb.ir.verify import verify
from graphkb.ops import elementwise as e
from graphkb.ops import index, leaf, linalg, reduce, shape


def line() -> int:
    """The line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def matrix(dtype: str = "float32", name: str = "x") -> Node:
    return leaf.placeholder((2, 3), dtype, name)


# ---------------------------------------------------------------------------------------------- interning
def test_equal_expressions_are_one_node() -> None:
    x = matrix()
    assert x * 2 + 1 is x * 2 + 1
    assert e.exp(x) is e.exp(x)
    assert reduce.reduce_sum(x, (1, 0)) is reduce.reduce_sum(x, (0, 1))
    assert shape.transpose(x, (1, 0)) is shape.transpose(x, (1, 0))
    assert x + x is not x * x
    assert x - 1 is not 1 - x


def test_attributes_and_inputs_tell_nodes_apart() -> None:
    x, y = matrix(), matrix(name="y")
    assert reduce.reduce_sum(x, (0,)) is not reduce.reduce_sum(x, (0,), keepdims=True)
    assert e.cast(x, "int8") is not e.cast(x, "int16")
    assert shape.concatenate([x, y], 0) is not shape.concatenate([y, x], 0)
    assert shape.concatenate([x, x], 0) is not shape.concatenate([x, x, x], 0)


def test_placeholders_and_variables_never_merge() -> None:
    assert matrix() is not matrix()
    cells = [VariableCell(np.zeros(3), "v") for _ in range(2)]
    assert leaf.variable(cells[0]) is leaf.variable(cells[0])
    assert leaf.variable(cells[0]) is not leaf.variable(cells[1])


def test_small_constants_are_one_by_value() -> None:
    assert leaf.constant(1.5, "float32") is leaf.constant(np.float32(1.5))
    assert leaf.constant([1, 2], "int8") is leaf.constant(np.array([1, 2], "int8"))
    assert leaf.constant(1, "float32") is not leaf.constant(1, "float64")
    assert leaf.constant(1, "int32") is not leaf.constant(True, "bool")
    assert leaf.constant([1], "int32") is not leaf.constant(1, "int32")
    assert leaf.constant(np.zeros((0, 2))) is not leaf.constant(np.zeros((2, 0)))


def test_constants_are_told_apart_by_their_bits() -> None:
    assert leaf.constant(0.0) is not leaf.constant(-0.0)
    assert leaf.constant(np.nan) is leaf.constant(np.nan)
    assert leaf.constant(np.nan) is not leaf.constant(-np.nan)


def test_large_constants_are_one_by_identity() -> None:
    array = np.arange(1000.0)
    assert leaf.constant(array) is not leaf.constant(array)
    held = Constant(array)
    assert make(leaf.CONSTANT, (), {"value": held}) is make(leaf.CONSTANT, (), {"value": held})


@pytest.mark.parametrize("count", [4, 1000])
def test_constants_do_not_follow_later_changes_of_the_array(count: int) -> None:
    array = np.zeros(count)
    views = [array, array[:], np.broadcast_to(array, (2, count)), array.reshape(2, -1).T]
    views[1].flags.writeable = False
    nodes = [leaf.constant(v) for v in views]
    array[:] = 7
    for node in nodes:
        assert not leaf.constant_value(node).any()
        assert leaf.constant_value(node).flags.c_contiguous
        assert not leaf.constant_value(node).flags.writeable


def test_numbers_that_do_not_fit_their_neighbor_are_refused() -> None:
    k = leaf.placeholder((3,), "uint8", "k")
    assert (k + 255).dtype == "uint8"
    for number in (-1, 256, 2.5, np.inf, np.nan):
        with pytest.raises(DTypeError, match=r"^the number .* can not be a uint8: cast the tensor"):
            _ = k + number


def test_dropped_nodes_free_their_memory() -> None:
    gc.collect()
    before = interned_count()
    x = matrix()
    for _ in range(1000):
        x = e.sin(x) + 1.25
    assert interned_count() >= before + 2000
    del x
    gc.collect()
    assert interned_count() <= before + 1


def test_a_chain_of_100000_nodes_is_made_walked_printed_pickled_and_dropped() -> None:
    x = leaf.placeholder((), "float64", "x")
    y = x
    for _ in range(50_000):
        y = y * 0.5 + 1
    graph = Graph((x,), (y,))
    verify(graph)
    assert len(graph.nodes) == 100_003
    assert format_graph(graph).count("\n") == 100_005
    again = pickle.loads(pickle.dumps(graph))
    assert interpret(again, [np.array(5.0)])[0] == interpret(graph, [np.array(5.0)])[0] == 2.0


# ---------------------------------------------------------------------------------------------- threads
def test_eight_threads_that_build_the_same_get_the_same() -> None:
    x = matrix()
    start = threading.Barrier(8)
    results: list[list[Node]] = [[] for _ in range(8)]

    def build(mine: list[Node]) -> None:
        start.wait()
        node = x
        for i in range(500):
            node = e.tanh(node * (i + 0.5)) + leaf.constant(float(i), "float32")
            mine.append(node)

    threads = [threading.Thread(target=build, args=(r,)) for r in results]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for others in zip(*results, strict=True):
        assert all(node is others[0] for node in others)
    assert len(results[0]) == 500


def test_threads_that_build_and_drop_leave_nothing_behind() -> None:
    x = matrix()
    gc.collect()
    before = interned_count()

    def churn(seed: int) -> None:
        for i in range(300):
            assert (x * float(i % 7) + float(seed % 2)).inputs[0].inputs[0] is x

    threads = [threading.Thread(target=churn, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    gc.collect()
    assert interned_count() <= before


# ---------------------------------------------------------------------------------------------- pickling
def test_unpickled_nodes_are_the_same_while_the_first_are_alive() -> None:
    y = e.exp(leaf.constant(np.arange(3.0))) * 2
    assert pickle.loads(pickle.dumps(y)) is y


def test_pickling_keeps_what_is_shared() -> None:
    n = symbol("n")
    x = leaf.placeholder((n, 3), "float32", "x")
    cell = VariableCell(np.ones(3, "float32"), "w")
    big = leaf.constant(np.arange(300, dtype="float32"))
    y = x * leaf.variable(cell) + shape.reshape(big, (100, 3))
    z = e.exp(y)
    y2, z2, cell2, n2 = pickle.loads(pickle.dumps((y, z, cell, n)))
    assert y2 is not y
    assert z2.inputs[0] is y2
    assert y2.inputs[0].inputs[1].attrs["cell"] is cell2
    assert cell2 is not cell
    assert y2.inputs[0].inputs[0].shape[0] == n2
    assert len(toposort([y2, z2])) == len(toposort([y, z]))


def test_a_pickled_graph_computes_the_same() -> None:
    n = symbol("n")
    x = leaf.placeholder((n,), "float64", "x")
    cell = VariableCell(np.array(2.0), "v")
    graph = Graph((x,), (x * leaf.variable(cell),), ((cell, leaf.variable(cell) + 1),), "step")
    again = pickle.loads(pickle.dumps(graph))
    assert str(again) == str(graph)
    assert again.updates[0][0] is not cell
    assert [a.tolist() for a in interpret(again, [np.arange(2.0)])] == [[0, 2], 3]


# ---------------------------------------------------------------------------------------------- verification
def broken(node: Node, type: TensorType) -> Node:
    """A node of a wrong type, which `make` would never build."""
    made = Node()
    made.op, made.inputs, made.attrs, made.type, made.origin = node.op, node.inputs, node.attrs, type, None
    return made


def failure(graph: Graph) -> str:
    with pytest.raises(GraphError) as error:
        verify(graph)
    return str(error.value)


def test_verify_accepts_a_right_graph() -> None:
    x = matrix()
    cell = VariableCell(np.zeros(3, "float32"), "v")
    verify(Graph((x,), (e.exp(x),), ((cell, reduce.reduce_sum(x, (0,))),)))


def test_verify_names_a_wrong_type() -> None:
    x = matrix()
    wrong = broken(e.exp(x), TensorType("float64", (2, 3)))
    assert failure(Graph((x,), (wrong,))) == ("%1: float64[2, 3] = exp(%0)\n  ^ the type should be float32[2, 3]")


def test_verify_names_operands_that_do_not_fit() -> None:
    x = matrix()
    other = broken(e.exp(x), TensorType("float64", (2, 3)))
    wrong = broken(x + x, x.type)
    wrong.inputs = (x, other)
    assert failure(Graph((x,), (wrong,))).splitlines()[0] == "%1: float64[2, 3] = exp(%0)"
    third = matrix("float64", "y")
    wrong.inputs = (x, third)
    assert failure(Graph((x, third), (wrong,))) == (
        "%2: float32[2, 3] = add(%0, %1)\n  ^ add: the operands must have one dtype, not float32 and float64"
    )


def test_verify_names_missing_and_doubled_placeholders() -> None:
    x = matrix()
    assert failure(Graph((), (e.exp(x),))) == (
        "%0: float32[2, 3] = placeholder('x', 'float32', (2, 3))\n"
        "  ^ this placeholder is needed but is not among the inputs"
    )
    assert failure(Graph((x, x), (x,))) == "a placeholder stands twice among the inputs of one graph"


def test_verify_names_updates_that_do_not_fit() -> None:
    cell = VariableCell(np.zeros(3), "v")
    x = matrix()
    assert failure(Graph((x,), (), ((cell, x),))) == (
        "the update of 'v' has type float32[2, 3], the variable float64[3]"
    )
    four = leaf.placeholder((4,), "float64", "y")
    assert (
        failure(Graph((four,), (), ((cell, four),))) == "the update of 'v' has type float64[4], the variable float64[3]"
    )


# ---------------------------------------------------------------------------------------------- the text form
GOLDEN = """\
graph step
  %0: float32[batch, 3] = placeholder('x', 'float32', (batch, 3))
  %1: int32[batch] = placeholder('i', 'int32', (batch,))
  %2: float32[3] = variable('w')
  %3: float32[batch] = dot(%0, %2, batch_x=(), batch_y=(), contract_x=(1,), contract_y=(0,))
  %4: float32[] = constant(1.5)
  %5: float32[batch] = mul(%3, %4)
  %6: float32[((batch + 1) // 2)] = slice(%5, starts=(0,), sizes=(((batch + 1) // 2),), steps=(2,))
  %7: float32[batch, 3] = gather(%0, %1, axis=0)
  %8: float32[1, 3] = sum(%7, axes=(0,), keepdims=True)
  %9: float32[3] = reshape(%8, shape=(3,))
  update 'w' = %9
  return %6
"""


def test_text_form() -> None:
    batch = symbol("batch")
    x = leaf.placeholder((batch, 3), "float32", "x")
    i = leaf.placeholder((batch,), "int32", "i")
    cell = VariableCell(np.zeros(3, "float32"), "w")
    y = linalg.dot(x, leaf.variable(cell), (), (), (1,), (0,)) * 1.5
    start, size, step = shape.slice_bounds(batch, slice(None, None, 2))
    rows = reduce.reduce_sum(index.gather(x, i), (0,), keepdims=True)
    graph = Graph((x, i), (shape.slice_(y, (start,), (size,), (step,)),), ((cell, shape.reshape(rows, (3,))),), "step")
    assert format_graph(graph, origins=False) == GOLDEN
    verify(graph)


def test_text_form_shows_the_lines() -> None:
    x = leaf.placeholder((), "float64", "x")
    y, here = e.exp(x), line()
    text = format_graph(Graph((x,), (y,)))
    assert f"{'  %1: float64[] = exp(%0)':<64}  # test_ir.py:{here}\n" in text


def test_sizes_of_one_name_print_apart() -> None:
    x, y = (leaf.placeholder((symbol("n"),), "float32", name) for name in "xy")
    text = format_graph(Graph((x, y), (x + y,)), origins=False)
    assert "%1: float32[n.2] = placeholder('y', 'float32', (n.2,))" in text
    assert "%2: float32[broadcast(n, n.2)] = add(%0, %1)" in text


# ---------------------------------------------------------------------------------------------- provenance
def test_nodes_know_the_users_line() -> None:
    x = leaf.placeholder((2,), "float32", "x")
    y, here = e.exp(x) * 2 + x, line()
    assert y.origin is not None
    assert (Path(y.origin.file).name, y.origin.line) == ("test_ir.py", here)
    assert y.origin.text == "y, here = e.exp(x) * 2 + x, line()"
    assert {n.origin.line for n in (y, *y.inputs) if n.origin is not None} <= {here, here - 1}


def test_name_scopes_nest() -> None:
    with name_scope("net"), name_scope("dense") as scope:
        x, here = leaf.placeholder((2,), "float32", "x"), line()
    assert scope == "net/dense"
    assert x.origin is not None
    assert x.origin.short == f"net/dense test_ir.py:{here}"
    assert matrix().origin.scope == ""  # type: ignore[union-attr]


def test_frames_of_internal_folders_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "library.py"
    source.write_text("def call(function):\n    return function()\n")
    space: dict[str, Callable[..., object]] = {}
    exec(compile(source.read_text(), str(source), "exec"), space)
    inner = space["call"](lambda: current_origin())
    assert inner is not None
    monkeypatch.setattr("graphkb.ir.origin.INTERNAL_FOLDERS", [*INTERNAL_FOLDERS, str(tmp_path) + "/"])
    assert space["call"](current_origin).file == __file__  # type: ignore[attr-defined]


def test_rebuilt_graphs_keep_the_lines() -> None:
    n = symbol("n")
    x = leaf.placeholder((n,), "float32", "x")
    y = e.exp(x)
    graph = Graph((x,), (y,)).bind({atom_of(n): 3})
    assert graph.outputs[0].origin == y.origin
    mapped = graph.map(lambda node: e.sin(node.inputs[0]) if node.op.name == "exp" else None)
    assert mapped.outputs[0].op is find_op("sin")
    assert mapped.outputs[0].origin == y.origin


# ---------------------------------------------------------------------------------------------- graphs and types
def test_bound_graphs_are_checked_anew() -> None:
    n, m = symbol("n"), symbol("m")
    x, y = leaf.placeholder((n,), "float32", "x"), leaf.placeholder((m,), "float32", "y")
    z, here = x + y, line()
    graph = Graph((x, y), (z,))
    assert graph.bind({atom_of(n): 3, atom_of(m): 1}).outputs[0].shape == (3,)
    with pytest.raises(ShapeError) as error:
        graph.bind({atom_of(n): 3, atom_of(m): 4})
    assert str(error.value) == (
        "add: shapes (3,) and (4,) do not broadcast: axis 0 has 3 and 4\n"
        f"  built at test_ir.py:{here}: z, here = x + y, line()"
    )


def test_consumers_count_uses() -> None:
    x = matrix()
    y = x * x
    users = Graph((x,), (y,)).consumers()
    assert users[x] == [y, y]
    assert users[y] == []


def test_unused_inputs_stay_in_the_graph() -> None:
    x, y = matrix(), matrix(name="y")
    graph = Graph((x, y), (e.exp(x),))
    assert y in graph.nodes
    assert replace(graph, name="other").nodes == graph.nodes


def test_dtype_names() -> None:
    assert [dtype_name(np.dtype(d)) for d in DTYPES] == list(DTYPES)
    assert dtype_name(">f4") == "float32"
    assert dtype_name(float) == "float64"
    with pytest.raises(TypeError, match=r"^dtype 'complex64' is not supported: expected one of bool, int8, "):
        dtype_name("complex64")
    assert "bool" not in NUMBERS


def test_symbolic_nodes_have_no_truth_value() -> None:
    with pytest.raises(TypeError, match="is symbolic and has no truth value"):
        bool(matrix())


def test_numpy_on_the_left_hand_side() -> None:
    x = matrix()
    assert np.float32(2) * x is x.__rmul__(np.float32(2))
    assert (np.float32(2) * x).op.name == "mul"


def test_values_of_variables_are_aligned() -> None:
    cell = VariableCell(np.arange(6).reshape(2, 3).T, "v")
    assert cell.array.flags.c_contiguous
    assert cell.array.ctypes.data % 64 == 0
    assert cell.array.tolist() == [[0, 3], [1, 4], [2, 5]]
