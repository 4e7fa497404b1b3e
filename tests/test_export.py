"""Exports: networkx, dot, SVG and JSON say what the graph says, at any size, and JSON comes back exactly."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphkb.gradients import gradients
from graphkb.ir.dims import maximum, symbol
from graphkb.ir.errors import GraphError
from graphkb.ir.export import from_json, to_dot, to_json, to_networkx, to_svg
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.origin import name_scope
from graphkb.ir.types import DTYPES, NUMPY_DTYPE
from graphkb.ops import leaf, linalg, shape
from graphkb.ops.elementwise import cast, exp, relu, tanh
from graphkb.ops.fused import fused
from graphkb.ops.reduce import MAX, reduce, reduce_sum
from graphkb.passes.fuse import Fuse

networkx = pytest.importorskip("networkx")

SVG = "{http://www.w3.org/2000/svg}"


def dot(a: Node, b: Node) -> Node:
    return linalg.dot(a, b, (), (), (a.ndim - 1,), (0,))


def dense(name: str = "predict") -> Graph:
    x = leaf.placeholder((symbol("batch"), 3), "float32", "x")
    w = VariableCell(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    with name_scope("layer"):
        y = relu(dot(x, leaf.variable(w)) * 0.1)
    return Graph((x,), (y,), (), name)


def training() -> Graph:
    n = symbol("batch")
    x, y = leaf.placeholder((n, 4), "float32", "x"), leaf.placeholder((n, 3), "float32", "y")
    cells = [VariableCell(np.ones((4, 3), np.float32), "w"), VariableCell(np.zeros(3, np.float32), "b")]
    w, b = map(leaf.variable, cells)
    z = dot(x, w) + b
    e = exp(z - reduce(MAX, z, (1,), True))
    loss = reduce_sum(y * (e / reduce_sum(e, (1,), True)), (0, 1)) / cast(leaf.size(n), "float32")
    steps = gradients([loss], [w, b])
    updates = tuple((cell, v - 0.1 * g) for cell, v, g in zip(cells, (w, b), steps) if g is not None)
    return Graph((x, y), (loss,), updates, 'train <step> & "more"')


def chain(length: int) -> Graph:
    x = leaf.placeholder((symbol("n"),), "float32", "x")
    y = x
    for i in range(length):
        y = tanh(y) if i % 3 else y + x
    return Graph((x,), (y, *[g for g in gradients([y], [x]) if g is not None]))


# ---------------------------------------------------------------------------------------------- networkx
def test_networkx_numbers_nodes_as_dumps_do() -> None:
    graph = dense()
    exported = graph.to_networkx()
    assert [exported.nodes[i]["op"] for i in range(len(graph.nodes))] == [n.op.name for n in graph.nodes]
    assert [repr(exported.nodes[i]["type"]) for i in (0, 1)] == ["float32[batch, 3]", "float32[3, 2]"]
    assert exported.nodes[2]["attrs"]["contract_x"] == (1,)
    assert exported.nodes[2]["origin"].scope == "layer"
    assert exported.graph == {"name": "predict", "inputs": [0], "outputs": [5], "updates": []}
    assert {(u, v, d["position"]) for u, v, d in exported.edges(data=True)} == {
        (0, 2, 0), (1, 2, 1), (2, 4, 0), (3, 4, 1), (4, 5, 0),
    }  # fmt: skip


def test_networkx_keeps_both_edges_of_a_square() -> None:
    x = leaf.placeholder((2,), "float32", "x")
    exported = to_networkx(Graph((x,), (x * x,)))
    assert sorted(d["position"] for _, _, d in exported.edges(data=True)) == [0, 1]


def test_networkx_algorithms_run() -> None:
    graph = training()
    exported = to_networkx(graph)
    assert networkx.is_directed_acyclic_graph(exported)
    assert list(networkx.topological_sort(exported))
    assert [name for name, _ in exported.graph["updates"]] == ["w", "b"]


# ---------------------------------------------------------------------------------------------- JSON
def assert_same(graph: Graph, again: Graph) -> None:
    assert str(again) == str(graph)
    assert [n.origin for n in again.nodes] == [n.origin for n in graph.nodes]
    assert (again.name, len(again.inputs), len(again.outputs)) == (graph.name, len(graph.inputs), len(graph.outputs))
    assert [(c.name, c.type) for c, _ in again.updates] == [(c.name, c.type) for c, _ in graph.updates]
    assert to_json(again) == to_json(graph)


@pytest.mark.parametrize("make_graph", [dense, training, lambda: chain(20), lambda: Graph((), (), (), "")])
def test_json_round_trip(make_graph) -> None:
    graph = make_graph()
    assert_same(graph, from_json(to_json(graph)))


def test_json_keeps_fused_bodies() -> None:
    graph = Fuse().apply(training().bind({}))
    again = from_json(to_json(graph))
    assert any(n.op.name == "fused" for n in again.nodes)
    assert_same(graph, again)


def test_json_shares_what_was_shared() -> None:
    table = leaf.constant(np.arange(100.0))
    cell = VariableCell(np.ones(100), "w")
    x = leaf.placeholder((symbol("n"),), "float64", "x")
    graph = Graph((x,), (x + table, table * leaf.variable(cell)), ((cell, leaf.variable(cell) + 1.0),))
    again = from_json(to_json(graph))
    a, b = again.outputs
    assert a.inputs[1] is b.inputs[0]
    assert again.updates[0][0] is b.inputs[1].attrs["cell"]
    assert a.inputs[0] is again.inputs[0]


def test_json_variables_come_with_values_only_when_asked() -> None:
    graph = dense()
    fresh = from_json(to_json(graph)).nodes[1].attrs["cell"]
    full = from_json(to_json(graph, values=True)).nodes[1].attrs["cell"]
    assert not fresh.array.any()
    np.testing.assert_array_equal(full.array, np.arange(6).reshape(3, 2))
    mine = VariableCell(np.ones((3, 2), np.float32), "w")
    assert from_json(to_json(graph), {"w": mine}).nodes[1].attrs["cell"] is mine
    with pytest.raises(GraphError, match=r"cells\[0\]: the variable 'w' is float32\[1\], the text expects float32"):
        from_json(to_json(graph), {"w": VariableCell(np.ones(1, np.float32), "w")})


@pytest.mark.parametrize("dtype", DTYPES)
def test_json_constants_keep_every_bit(dtype: str) -> None:
    kind = NUMPY_DTYPE[dtype]
    raw = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, 40 * kind.itemsize, dtype=np.uint8)
    array = raw.view(kind).reshape(5, 8)
    for value in (array, array.T, array[:0], array[1, 2], np.broadcast_to(array[0], (3, 8))):
        (again,) = from_json(to_json(Graph((), (leaf.constant(value),)))).outputs
        found = leaf.constant_value(again)
        assert (found.dtype, found.shape, found.tobytes()) == (kind, np.shape(value), value.tobytes())


ANYTHING = define("test_anything", infer=lambda *, a: leaf.TensorType("float32", ()), params=("a",))
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))


@settings(max_examples=60, deadline=None)
@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6))
def test_json_attributes_round_trip(value: object) -> None:
    graph = Graph((), (make(ANYTHING, (), {"a": value}),))
    found = from_json(to_json(graph)).outputs[0].attrs["a"]
    assert repr(found) == repr(value)


def test_json_refuses_attributes_that_it_can_not_carry() -> None:
    graph = Graph((), (make(ANYTHING, (), {"a": test_json_constants_keep_every_bit}),))
    with pytest.raises(GraphError, match="to_json: test_anything has the attribute a of type function"):
        to_json(graph)


@st.composite
def sizes(draw: st.DrawFn) -> object:
    """A random expression over two unknown sizes."""
    dims: list = [symbol("n"), symbol("m"), draw(st.integers(1, 5))]
    for _ in range(draw(st.integers(0, 6))):
        a, b = draw(st.sampled_from(dims)), draw(st.sampled_from(dims))
        operation = draw(st.sampled_from(["+", "-", "*", "//", "max"]))
        match operation:
            case "+":
                dims.append(a + b)
            case "-":
                dims.append(a - b)
            case "*":
                dims.append(a * b)
            case "//":
                dims.append(a // (b if not isinstance(b, int) or b else 1))
            case _:
                dims.append(maximum(a, b, 1))
    return dims


@settings(max_examples=60, deadline=None)
@given(sizes())
def test_json_sizes_round_trip(dims: list) -> None:
    x = leaf.placeholder((dims[0], dims[1]), "float32", "x")
    graph = Graph((x,), tuple(leaf.size(d) for d in dims))
    assert_same(graph, from_json(to_json(graph)))


def test_json_deep_graphs_need_no_recursion() -> None:
    graph = chain(30_000)
    again = from_json(to_json(graph))
    assert len(again.nodes) == len(graph.nodes)


def test_json_deep_bodies_and_sizes_need_no_recursion() -> None:
    x = leaf.placeholder((2,), "float32", "x")
    body = Graph((x,), (tanh(x),))
    for _ in range(2000):
        p = leaf.placeholder((2,), "float32", "p")
        body = Graph((p,), (fused((p,), body),))
    assert to_json(from_json(to_json(body))) == to_json(body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="other"), 'expected a JSON object with "format": "graphkb-graph"'),
        (lambda d: d.update(version=99), "version 99 is not known; this is version 1"),
        (lambda d: d.pop("graphs"), "document: 'graphs' is missing"),
        (lambda d: d.update(graphs=[]), "there is no graph"),
        (lambda d: node(d, 2).update(op="nonsense"), "graphs[0], node %2: there is no op 'nonsense'"),
        (lambda d: node(d, 2).update(inputs=[0, 7]), "graphs[0], node %2: there is no row 7"),
        (lambda d: node(d, 2).update(inputs=[0, -1]), "graphs[0], node %2: there is no row -1"),
        (lambda d: node(d, 2).update(dtype="int8"), "graphs[0], node %2: dot gives float32[batch, 2], the text says"),
        (lambda d: node(d, 2)["attrs"].pop("batch_x"), "graphs[0], node %2: dot has the attributes ('batch_x',"),
        (lambda d: node(d, 2)["attrs"].update(contract_x=[5]), "graphs[0], node %2: "),
        (lambda d: node(d, 0).update(shape=[{"dim": 0}, -3]), "node %0: a shape with a negative size"),
        (lambda d: node(d, 0).update(shape=[{"dim": 3}, 3]), "node %0: there is no row 3"),
        (lambda d: node(d, 0).update(shape=[True, 3]), "node %0: expected an integer, got True"),
        (lambda d: d["graphs"][0].update(inputs=[]), "^ this placeholder is needed but is not among the inputs"),
        (lambda d: d["graphs"][0].update(inputs=[1]), "graphs[0]: an input is not a placeholder"),
        (lambda d: d["constants"][0].update(data="AA=="), "constants[0]: "),
        (lambda d: d["constants"][0].update(data="*"), "constants[0]: "),
        (lambda d: d["constants"][0].update(dtype="bool", data="Ag=="), "constants[0]: a bool is neither 0 nor 1"),
        (lambda d: d["cells"][0].update(dtype="complex64"), "cells[0]: expected a dtype, got 'complex64'"),
        (lambda d: d.update(dims=[[[1]]]), "dims[0]: [[1]] holds no unknown size"),
        (lambda d: d.update(dims=[[[0, [0, 1]]]]), "dims[0]: [[0, [0, 1]]] is not in canonical form"),
        (lambda d: d.update(dims=[[[1, [["floordiv", 1], 1]]]]), "dims[0]: floordiv takes 2 sizes, not 1"),
    ],
)
def test_json_errors_name_the_place(change, message: str) -> None:
    document = json.loads(to_json(dense()))
    change(document)
    with pytest.raises(GraphError) as error:
        from_json(json.dumps(document))
    assert str(error.value).startswith("from_json: ")
    assert message in str(error.value)


def node(document: dict, index: int) -> dict:
    return document["graphs"][0]["nodes"][index]


@pytest.mark.parametrize("text", ["", "[", "[1, 2]", "null", "[" * 100_000])
def test_json_refuses_other_texts(text: str) -> None:
    with pytest.raises(GraphError, match="from_json: "):
        from_json(text)


def test_pickles_and_json_are_read_by_a_fresh_process() -> None:
    program = (
        "import pickle, sys; from graphkb.ir.export import from_json; data = sys.stdin.buffer.read();"
        "print(from_json(data.decode()) if data[:1] == b'{' else pickle.loads(data))"
    )
    graph = dense()
    for data in (to_json(graph).encode(), pickle.dumps(graph.outputs[0])):
        out = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
        assert b"relu" in out.stdout


# ---------------------------------------------------------------------------------------------- pictures
def test_dot_text() -> None:
    text = to_dot(dense())
    assert text.startswith('digraph "predict" {\n')
    assert 'n0 [label="%0 x\\nfloat32[batch, 3]", fillcolor="#dbeafe", color="#2563eb", shape=oval' in text
    assert 'n4 [label="%4 mul(·, 0.1)' in text
    assert "  n0 -> n2;\n" in text
    assert "  n5 -> r0;\n" in text
    assert "test_export.py" in text
    assert text.endswith("}\n")


def test_dot_draws_fused_nodes_as_clusters() -> None:
    x, y = leaf.placeholder((2,), "float32", "x"), leaf.placeholder((2,), "float32", "y")
    p, q = leaf.placeholder((2,), "float32", "p"), leaf.placeholder((2,), "float32", "q")
    outer = fused((x, y), Graph((p, q), (tanh(p + q),)))
    lines = [line.strip() for line in to_dot(Graph((x, y), (relu(outer),))).splitlines()]
    assert "subgraph cluster_n2 {" in lines
    assert "n0 -> n2_2;" in lines  # operands lead to the nodes inside
    assert "n1 -> n2_2;" in lines
    assert "n2_3 -> n3;" in lines


def test_dot_quotes_names() -> None:
    x = leaf.placeholder((), "float32", 'a"b\\c\n\0')
    text = to_dot(Graph((x,), (tanh(x),), (), '"]; bad'))
    assert 'digraph "\\"]; bad"' in text
    assert '%0 a\\"b\\\\c\\n\ufffd' in text


def test_svg_shows_every_node_once() -> None:
    graph = training()
    picture = ET.fromstring(to_svg(graph))
    texts = [element.text or "" for element in picture.iter(f"{SVG}text")]
    assert 'train <step> & "more"' in texts
    assert "float32[batch, 4]" in texts
    assert {"output", "update w", "update b"} <= set(texts)
    tags = [text for text in texts if text.startswith("%")]
    drawn = {f"%{i}" for i, n in enumerate(graph.nodes) if n.op.name != "constant"}
    assert drawn == set(tags)
    hints = "".join(element.text or "" for element in picture.iter(f"{SVG}title"))
    assert "built at test_export.py" in hints


def test_svg_edges_point_down_and_boxes_do_not_overlap() -> None:
    picture = ET.fromstring(to_svg(Fuse().apply(training().bind({}))))
    (group,) = [g for g in picture if "transform" in g.attrib]
    boxes = []
    for rect in group.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
        boxes.append((x, y, x + w, y + h))
    assert len(boxes) > 20
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for path in group.iter(f"{SVG}path"):
        if path.attrib["class"] == "gkb-e" and "stroke-dasharray" not in path.attrib:
            d = path.attrib["d"]
            start, end = float(d[1:].split("C")[0].split("V")[0].split()[1]), float(d.replace("V", " ").split()[-1])
            assert end > start


@pytest.mark.parametrize("name", ["x", "<&>\"'", "a\0b\x1b\ud800", "ü漢字🙂", ""])
def test_svg_is_well_formed_for_any_name(name: str) -> None:
    x = leaf.placeholder((3,), "float32", name)
    ET.fromstring(to_svg(Graph((x,), (shape.reshape(x, (3, 1)),), (), name)).encode("utf-8"))


def test_svg_of_odd_graphs() -> None:
    x = leaf.placeholder((0,), "bool", "x")
    cell = VariableCell(np.zeros(()), "w")
    for graph in (
        Graph((), ()),
        Graph((x,), ()),
        Graph((x,), (x, x)),
        Graph((), (leaf.constant(1.0),)),
        Graph((), (leaf.variable(cell),), ((cell, leaf.variable(cell)),)),
    ):
        ET.fromstring(to_svg(graph))
        to_dot(graph)


def test_svg_of_large_graphs_names_the_ends_of_far_edges() -> None:
    picture = ET.fromstring(to_svg(chain(3000)))
    texts = [element.text for element in picture.iter(f"{SVG}text")]
    assert len(texts) > 6000
    dashed = [p for p in picture.iter(f"{SVG}path") if "stroke-dasharray" in p.attrib]
    assert len(dashed) > 1000


def test_exports_need_no_networkx_until_asked() -> None:
    program = "import sys; sys.modules['networkx'] = None; import graphkb.ir.export as e; print(e.to_svg.__name__)"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout == "to_svg\n"
