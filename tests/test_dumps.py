"""Dumps: every stage in every format, folders of dumps, notebooks' pictures, and errors that list the choices."""

from __future__ import annotations

import html.parser
import io
import json
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import graphkb
from graphkb import backend as K
from graphkb.dumps import collect_stages, pass_names, stage_names
from graphkb.dumps_folder import FolderDump
from graphkb.ir.dims import symbol
from graphkb.ir.errors import InputError
from graphkb.ir.export import from_json, repr_svg
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ops import leaf
from graphkb.ops.elementwise import relu, stop_gradient
from graphkb.ops.fused import fused
from graphkb.runtime.function import Function

RAW = """\
graph scale
  %0: float32[n, 2] = placeholder('x', 'float32', (n, 2))
  %1: float32[n, 2] = stop_gradient(%0)
  %2: float32[2] = variable('w')
  %3: float32[n, 2] = mul(%1, %2)
  %4: float32[] = constant(1.0)
  %5: float32[n, 2] = mul(%3, %4)
  %6: float32[n, 2] = relu(%5)
  return %6
"""
FUSED = """\
graph scale
  %0: float32[n, 2] = placeholder('x', 'float32', (n, 2))
  %1: float32[2] = variable('w')
  %2: float32[n, 2] = fused(%0, %1)
      %2.0: float32[n, 2] = mul(%0, %1)
      %2.1: float32[n, 2] = relu(%2.0)
  return %2
"""


def scale(name: str = "scale") -> Graph:
    x = leaf.placeholder((symbol("n"), 2), "float32", "x")
    w = leaf.variable(VariableCell(np.array([1.0, -1.0], np.float32), "w"))
    return Graph((x,), (relu(stop_gradient(x) * w * 1.0),), (), name)


def without_origins(text: str) -> str:
    return "".join(line.partition("  #")[0].rstrip() + "\n" for line in text.splitlines())


# ---------------------------------------------------------------------------------------------- stages
def test_raw_is_what_was_built() -> None:
    assert without_origins(graphkb.dump(scale(), "raw")) == RAW
    assert "  # test_dumps.py:" in graphkb.dump(scale(), "raw")


def test_optimized_is_what_the_passes_made_of_it() -> None:
    assert without_origins(graphkb.dump(scale())) == FUSED


def test_a_pass_by_its_name() -> None:
    assert "stop_gradient" not in graphkb.dump(scale(), "prune_stop_gradient")
    assert "constant(1.0)" in graphkb.dump(scale(), "prune_stop_gradient")
    assert "constant(1.0)" not in graphkb.dump(scale(), "simplify")


def test_all_stages_are_named_and_made() -> None:
    names = [name for name, _ in collect_stages(scale())]
    assert names == ["raw", *pass_names(), "optimized"]
    assert len(set(names)) == len(names)
    assert stage_names() == [*names, "loops", "llvm", "asm"]


def test_a_called_function_is_shown_for_the_shapes_of_its_latest_call() -> None:
    f = Function(scale())
    assert "float32[n, 2]" in f.dump()
    f([np.ones((3, 2), np.float32)])
    f([np.ones((5, 2), np.float32)])
    assert "float32[5, 2]" in f.dump()
    assert "float32[n, 2]" in f.dump("raw")
    assert "float32[7, 2]" in f.dump("simplify", shapes=[(7, 2)])
    assert "float32[8, 2]" in f.dump("raw", shapes={"x": (8, 2)})


def test_graph_is_the_one_that_runs() -> None:
    f = Function(scale())
    made = f.specialize([(3, 2)])
    assert f.graph() is made.plan.fused
    assert f.graph("raw") is f.definition
    assert f.graph("fuse").to_networkx().nodes[2]["op"] == "fused"
    with pytest.raises(ValueError, match="stage 'loops' is a text, not a graph"):
        f.graph("loops")


def test_passes_are_shown_with_the_options_of_the_function() -> None:
    x = leaf.placeholder((2,), "float32", "x")
    f = Function(Graph((x,), (x / 3,), name="third"), options={"fastmath": True})
    assert " mul(" in f.dump("simplify")
    assert " mul(" in f.dump("optimized")
    with graphkb.options(fastmath=True):
        assert " mul(" in graphkb.dump(Graph((x,), (x / 3,)), "simplify")


def test_an_interpreted_function_is_not_fused() -> None:
    f = Function(scale(), options={"mode": "interpret"})
    f([np.ones((3, 2), np.float32)])
    assert "fused" not in f.dump()
    assert f.dump("loops") == "# scale: nothing is native; every node is interpreted\n"
    assert f.dump("llvm").startswith(";")


def test_code_stages() -> None:
    f = Function(scale(), options={"mode": "native"})
    f([np.ones((3, 2), np.float32)])
    assert "kernel " in f.dump("loops")
    assert "define " in f.dump("llvm")
    assert ".text" in f.dump("asm")
    assert "kernel " in graphkb.dump(scale(), "loops", shapes=[(3, 2)])


def test_code_stages_need_sizes() -> None:
    with pytest.raises(InputError) as error:
        graphkb.dump(scale(), "loops")
    assert str(error.value) == (
        "dump: stage 'loops' needs the sizes of x: call the function first, or tell them, as in shapes={'x': (32, 2)}"
    )


# ---------------------------------------------------------------------------------------------- objects
def test_tensors_lists_functions_and_graphs() -> None:
    x = K.placeholder((None, 3), name="x")
    y = K.relu(x) + 1.0
    assert "relu" in graphkb.dump(y, "raw")
    both = graphkb.dump([y, x], "raw")
    assert both.splitlines()[-1].startswith("  return %")
    assert both.count("placeholder") == 1
    f = K.function([x], [y])
    assert graphkb.dump(f, "raw") == f.dump("raw")
    assert graphkb.dump(f.graph("raw"), "raw") == f.dump("raw")
    assert "placeholder" not in graphkb.dump(K.variable(np.zeros(3)) * 2.0)


@pytest.mark.parametrize("obj", [3, "text", None, [3], np.zeros(3)])
def test_other_objects_are_refused(obj: object) -> None:
    with pytest.raises(TypeError, match="expected a tensor, a list of tensors, a function or a graph, got"):
        graphkb.dump(obj)


# ---------------------------------------------------------------------------------------------- formats
def test_formats() -> None:
    graph = scale()
    assert graphkb.dump(graph, "raw", "dot").startswith("digraph")
    assert str(from_json(graphkb.dump(graph, "optimized", "json"))) == graphkb.dump(graph)
    assert ET.fromstring(graphkb.dump(graph, "optimized", "svg")).tag.endswith("svg")
    assert json.loads(graphkb.dump(graph, "raw", "json"))["version"] == 1


class Links(html.parser.HTMLParser):
    """Collects what a page would load, and checks that its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "input", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def test_html_is_one_page_with_all_stages_and_their_changes() -> None:
    page = graphkb.dump(scale("<b>"), "simplify", "html", shapes=[(3, 2)])
    parser = Links()
    parser.feed(page)
    assert parser.loads == []
    assert parser.open == []
    assert "<h1>&lt;b&gt;</h1>" in page
    assert all(f"<h2>{name}</h2>" in page for name in stage_names())
    assert '<span class="d">-  %3: float32[] = constant(1.0)' in page
    position = stage_names().index("simplify")
    assert f'id="r{position}" checked>' in page
    assert "no change" in page


def test_html_without_sizes_ends_before_the_loops() -> None:
    page = graphkb.dump(scale(), format="html")
    assert "<h2>optimized</h2>" in page
    assert "<h2>loops</h2>" not in page


def test_files(tmp_path: Path) -> None:
    graph = scale()
    path = tmp_path / "graph.txt"
    text = graphkb.dump(graph, file=path)
    assert path.read_text() == text
    graphkb.dump(graph, file=str(path), format="dot")
    assert path.read_text().startswith("digraph")
    stream = io.StringIO()
    graphkb.dump(graph, file=stream)
    assert stream.getvalue() == text
    with pytest.raises(OSError, match="missing"):
        graphkb.dump(graph, file=tmp_path / "missing" / "graph.txt")


def test_any_name_can_be_written(tmp_path: Path) -> None:
    x = leaf.placeholder((2,), "float32", "\ud800 \0 ü")
    for form in ("text", "dot", "json", "svg", "html"):
        graphkb.dump(Graph((x,), (relu(x),), (), "\udfff"), "raw", form, file=tmp_path / form)
        assert (tmp_path / form).stat().st_size


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense",), "dump: there is no stage 'nonsense'; expected one of raw, verify"),
        (("nonsense", "html"), "dump: there is no stage 'nonsense'; expected one of raw, verify"),
        (("raw", "png"), "dump: there is no format 'png'; expected one of text, dot, json, svg, html"),
        (("loops", "svg"), "dump: stage 'loops' is a text; format 'svg' is for the stages before it"),
        (("raw", "text", None, {"z": (3, 2)}), "dump: there is no placeholder 'z'; expected one of x"),
        (("raw", "text", None, {}), "dump: shapes says nothing about x, whose sizes are not all known"),
        (("raw", "text", None, [(3, 3)]), "x: expected shape (None, 2), got (3, 3)"),
        (("raw", "text", None, []), "scale: expected 1 shapes, got 0"),
    ],
)
def test_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError) as error:
        graphkb.dump(scale(), *arguments)
    assert str(error.value).startswith(message)


# ---------------------------------------------------------------------------------------------- text of bodies
def test_bodies_read_in_the_names_of_the_operands() -> None:
    p, q = leaf.placeholder((2,), "float32", "p"), leaf.placeholder((2,), "float32", "q")
    inner = Graph((p,), (relu(p),))
    body = Graph((p, q), (fused((p * q,), inner),))
    x = leaf.placeholder((2,), "float32", "x")
    y = relu(x)
    lines = without_origins(str(Graph((x,), (fused((x, y), body),)))).splitlines()
    assert lines[3:] == [
        "  %2: float32[2] = fused(%0, %1)",
        "      %2.0: float32[2] = mul(%0, %1)",
        "      %2.1: float32[2] = fused(%2.0)",
        "          %2.1.0: float32[2] = relu(%2.0)",
        "  return %2",
    ]


# ---------------------------------------------------------------------------------------------- notebooks
def test_notebooks_show_pictures_of_graphs_that_can_be_looked_at() -> None:
    x = K.placeholder((None, 3), name="x")
    y = K.relu(x) + 1.0
    f = K.function([x], [y], name="shown")
    for shown in (y._repr_svg_(), f._repr_svg_(), f.graph("raw")._repr_svg_()):
        assert shown is not None
        ET.fromstring(shown)
    f([np.ones((2, 3))])
    assert "float32[2, 3]" in (f._repr_svg_() or "")
    assert repr(f.graph("raw")) == "<Graph shown: 4 nodes>"
    assert repr(f.report()) == str(f.report()).rstrip()
    node = leaf.placeholder((2,), "float32", "x")
    deep = node
    for _ in range(3000):
        deep = relu(deep) + node
    assert repr_svg(Graph((node,), (deep,))) is None


# ---------------------------------------------------------------------------------------------- GRAPHKB_DUMP
def test_every_specialization_is_dumped_into_a_folder_of_its_own(tmp_path: Path) -> None:
    f = Function(scale("my/net "), options={"dump": str(tmp_path / "new"), "mode": "native"})
    for rows in (3, 4, 3):
        f([np.ones((rows, 2), np.float32)])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["my_net-0", "my_net-1"]
    folder = tmp_path / "new" / "my_net-0"
    numbered = [f"{i:02d}-{name}.txt" for i, name in enumerate(["input", *pass_names()])]
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*numbered, "loops.txt", "llvm.ll", "asm.s", "report.txt", "optimized.svg"]
    )
    assert "float32[3, 2] = relu" in (folder / "00-input.txt").read_text()
    assert "kernel " in (folder / "loops.txt").read_text()
    assert "define " in (folder / "llvm.ll").read_text()


def test_the_environment_chooses_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHKB_DUMP", str(tmp_path))
    x = K.placeholder((None, 3), name="x")
    K.function([x], [K.relu(x)], name="rectify")([np.ones((2, 3))])
    assert (tmp_path / "rectify-0" / "00-input.txt").is_file()


def test_folders_that_exist_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scale-0").mkdir()
    Function(scale(), options={"dump": str(tmp_path)}).specialize([(3, 2)])
    assert not list((tmp_path / "scale-0").iterdir())
    assert list((tmp_path / "scale-1").iterdir())


def test_a_dump_that_can_not_be_written_warns_once_and_hurts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FolderDump, "_failed", False)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    f = Function(scale(), options={"dump": str(blocked / "dumps")})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for rows in (1, 2):
            (out,) = f([np.ones((rows, 2), np.float32)])
            np.testing.assert_array_equal(out, [[1, 0]] * rows)
    assert [str(w.message).partition(":")[0] for w in told if w.category is RuntimeWarning] == ["GRAPHKB_DUMP"]
