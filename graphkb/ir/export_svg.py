"""Graphs as SVG pictures, drawn here: nothing has to be installed to make or to see one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphkb.ir.export_layout import Layout, layered
from graphkb.ir.export_style import FAMILIES, RESULT, Family, clip, details, family, hint, inline_value, title
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.text import SymbolNames, format_type, number, symbol_names

MARGIN = 28
TITLE, SMALL = 13.0, 10.5  # font sizes
MONO = 0.605  # width of a character of the fixed-width fonts, in font sizes
_PAD = 11.0
_NEAR = 6  # layers after which a variable is drawn once more, beside its next user
_STYLE = (
    ".gkb{font-family:Helvetica,Arial,'Liberation Sans','DejaVu Sans',sans-serif}"
    ".gkb-t{font-size:13px;font-weight:600;fill:#0f172a}"
    ".gkb-m{font-family:Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace;font-size:10.5px;fill:#334155}"
    ".gkb-s{font-family:Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace;font-size:9.5px;fill:#64748b}"
    ".gkb-e{fill:none;stroke:#94a3b8;stroke-width:1.4}"
    ".gkb-a{fill:#94a3b8}"
    ".gkb-e:hover{stroke:#0f172a;stroke-width:2.4}"
)
# Average widths in font sizes of a bold sans-serif letter, by how wide it is drawn.
_NARROW = set("ijlI.,:;'|!()[]{}/\\ ·f-rt")
_WIDE = set("mwMW@%…")


@record
class _Box:
    """One box: a node, or an output or update below the node that gives it."""

    title: str
    tag: str
    lines: tuple[str, ...]
    family: Family
    hint: str
    round: bool
    width: float
    height: float


def to_svg(graph: Graph) -> str:
    """The graph as an SVG picture that needs no other file.

    Inputs stand on top and every edge points down; colors tell the families of ops, and each box says the type of its
    value. A tooltip has the node's full line and the line of the user's program. Constants of one element are written
    into the nodes that read them, and a variable is drawn again where it is read far from its first use. In place of an
    edge that would cross the whole picture, a short line into its target names the operand.

    Returns:
        A well-formed SVG document, in a time near-linear in the number of nodes.
    """
    names = number(graph)
    boxes, edges, floating = _collect(graph, names, symbol_names(graph))
    layout = layered([(b.width, b.height) for b in boxes], edges, floating)
    return _draw(graph, boxes, edges, layout)


def _collect(
    graph: Graph, names: dict[Node, str], symbols: SymbolNames
) -> tuple[list[_Box], list[tuple[int, int]], list[bool]]:
    """All boxes with the edges between them, and which boxes stand close above their users."""
    boxes: list[_Box] = []
    edges: list[tuple[int, int]] = []
    floating: list[bool] = []
    index: dict[Node, int] = {}
    depth: dict[Node, int] = {}
    drawn_at: dict[Node, int] = {}
    roots = set(graph.roots)
    for node in graph.nodes:
        depth[node] = max([depth[i] + 1 for i in node.inputs], default=0)
        leaf = node.op.kind == "leaf"
        if node not in roots and inline_value(node) is not None:
            continue
        if leaf and node.op.name != "placeholder" and node not in roots:
            drawn_at[node] = -_NEAR  # drawn when its first user is
            continue
        operands = []
        for operand in node.inputs:
            if operand in drawn_at and abs(depth[node] - drawn_at[operand]) >= _NEAR:
                drawn_at[operand] = depth[node]
                index[operand] = len(boxes)
                boxes.append(_node_box(operand, names, symbols))
                floating.append(True)
            if operand in index:
                operands.append(index[operand])
        index[node] = len(boxes)
        boxes.append(_node_box(node, names, symbols))
        floating.append(leaf and node.op.name != "placeholder")
        edges += [(operand, index[node]) for operand in operands]
    results = [(f"output {i}" if len(graph.outputs) > 1 else "output", n) for i, n in enumerate(graph.outputs)]
    results += [(f"update {cell.name}", n) for cell, n in graph.updates]
    for text, node in results:
        edges.append((index[node], len(boxes)))
        boxes.append(_box(text, "", (), RESULT, f"{text} = {names[node]}", True))
        floating.append(False)
    return boxes, edges, floating


def _node_box(node: Node, names: dict[Node, str], symbols: SymbolNames) -> _Box:
    lines = (format_type(node.type, symbols), *details(node, symbols))
    return _box(title(node), names[node], lines, family(node), hint(node, names, symbols), node.op.kind == "leaf")


def _box(title: str, tag: str, lines: Sequence[str], family: Family, hint: str, round: bool) -> _Box:
    title = clip(title, 40)
    lines = tuple([clip(line, 60) for line in lines])
    heading = _text_width(title, TITLE) + (14 + MONO * 9.5 * len(tag) if tag else 0)
    body = [MONO * (SMALL if i == 0 else 9.5) * len(line) for i, line in enumerate(lines)]
    width = max(heading, *body, 36.0) + 2 * _PAD if body else max(heading, 36.0) + 2 * _PAD
    height = 26.0 + 14.5 * len(lines) + (3.0 if lines else 0.0)
    return _Box(title, tag, lines, family, hint, round, width, height)


def _text_width(text: str, size: float) -> float:
    return size * sum(0.41 if c in _NARROW else 1.0 if c in _WIDE else 0.76 if c.isupper() else 0.68 for c in text)


def _draw(graph: Graph, boxes: list[_Box], edges: list[tuple[int, int]], layout: Layout) -> str:
    chips, head = _head(graph, boxes, layout.width)
    width = max(layout.width, head[0])
    left, top = MARGIN + (width - layout.width) / 2, MARGIN + head[1]
    total = (width + 2 * MARGIN, top + layout.height + MARGIN)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="gkb" width="{total[0]:.0f}" height="{total[1]:.0f}" '
        f'viewBox="0 0 {total[0]:.0f} {total[1]:.0f}" role="img">',
        f"<title>{_escape(graph.name)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{total[0]:.0f}" height="{total[1]:.0f}" fill="#ffffff" rx="8"/>',
        *chips,
        f'<g transform="translate({left:.1f} {top:.1f})">',
    ]
    for (source, target), route in zip(edges, layout.routes):
        if route is None:
            out += _stub(boxes[source], boxes[target], layout.centers[target])
        else:
            out += _edge(route)
    for box, center in zip(boxes, layout.centers):
        out += _node(box, center)
    out.append("</g>\n</svg>\n")
    return "\n".join(out)


def _head(graph: Graph, boxes: list[_Box], available: float) -> tuple[list[str], tuple[float, float]]:
    """Title, figures and legend, with the space that they take."""
    figures = [_plural(len(graph.nodes), "node"), _plural(len(graph.inputs), "input")]
    figures.append(_plural(len(graph.outputs), "output"))
    if graph.updates:
        figures.append(_plural(len(graph.updates), "update"))
    name, text = clip(graph.name, 80), ", ".join(figures)
    out = [
        f'<text x="{MARGIN}" y="{MARGIN + 14}" font-size="18" font-weight="700" fill="#0f172a">{_escape(name)}</text>',
        f'<text x="{MARGIN}" y="{MARGIN + 33}" font-size="12" fill="#64748b">{text}</text>',
    ]
    widest = max(_text_width(name, 18), _text_width(text, 12))
    right = max(available, widest, 420.0)
    x, y = 0.0, 56.0
    used = {box.family for box in boxes}
    for kind in (f for f in FAMILIES if f in used):
        wide = 24 + _text_width(kind.name, 11)
        if x and x + wide > right:
            x, y = 0.0, y + 20
        out.append(
            f'<rect x="{MARGIN + x:.1f}" y="{MARGIN + y - 9:.1f}" width="12" height="12" rx="3" '
            f'fill="{kind.fill}" stroke="{kind.line}"/>'
            f'<text x="{MARGIN + x + 17:.1f}" y="{MARGIN + y + 1:.1f}" font-size="11" fill="#334155">'
            f"{kind.name}</text>"
        )
        x += wide + 10
        widest = max(widest, x - 10)
    return out, (widest, y + 30)


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _edge(route: list[tuple[float, float, float]]) -> list[str]:
    (x, start, below), *rest = route
    path = [f"M{x:.1f} {start:.1f}"]
    if below > start:
        path.append(f"V{below:.1f}")
    y = below
    for at, top, bottom in rest:
        bend = (top - y) * 0.55
        path.append(f"C{x:.1f} {y + bend:.1f} {at:.1f} {top - bend:.1f} {at:.1f} {top:.1f}")
        if bottom > top:
            path.append(f"V{bottom:.1f}")
        x, y = at, bottom
    return [f'<path class="gkb-e" d="{"".join(path)}"/>', _arrow(x, y)]


def _arrow(x: float, y: float) -> str:
    return f'<path class="gkb-a" d="M{x - 3.4:.1f} {y - 7:.1f}h6.8l-3.4 7z"/>'


def _stub(source: _Box, target: _Box, end: tuple[float, float]) -> list[str]:
    """An edge too long to draw: a short line into the target that tells where it comes from."""
    x, y = end[0] + target.width * 0.42, end[1] - target.height / 2
    label = source.tag or source.title
    return [
        f'<path class="gkb-e" stroke-dasharray="3 2" d="M{x:.1f} {y - 18:.1f}V{y - 4:.1f}"/>',
        _arrow(x, y),
        f'<text class="gkb-s" x="{x + 4:.1f}" y="{y - 10:.1f}">{_escape(label)}</text>',
    ]


def _node(box: _Box, center: tuple[float, float]) -> list[str]:
    left, top = center[0] - box.width / 2, center[1] - box.height / 2
    corner = box.height / 2 if box.round and box.height < 30 else 14 if box.round else 6
    dark = box.family is RESULT
    out = [
        "<g>",
        f"<title>{_escape(box.hint)}</title>",
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{corner:.0f}" '
        f'fill="{box.family.fill}" stroke="{box.family.line}" stroke-width="1.3"/>',
    ]
    x = left + _PAD
    if box.tag:
        out.append(f'<text class="gkb-t" x="{x:.1f}" y="{top + 18:.1f}">{_escape(box.title)}</text>')
        edge = left + box.width - _PAD
        out.append(f'<text class="gkb-s" x="{edge:.1f}" y="{top + 18:.1f}" text-anchor="end">{box.tag}</text>')
    else:
        color = ' style="fill:#ffffff"' if dark else ""
        out.append(
            f'<text class="gkb-t"{color} x="{center[0]:.1f}" y="{top + 17.5:.1f}" text-anchor="middle">'
            f"{_escape(box.title)}</text>"
        )
    for i, line in enumerate(box.lines):
        style = "gkb-m" if i == 0 else "gkb-s"
        out.append(f'<text class="{style}" x="{x:.1f}" y="{top + 33 + 14.5 * i:.1f}">{_escape(line)}</text>')
    out.append("</g>")
    return out


_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escape(text: str) -> str:
    """The text for XML, with characters that XML does not allow at all replaced."""
    text = _FORBIDDEN.sub("\ufffd", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
