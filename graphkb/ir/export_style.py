"""What pictures of graphs show: families with their colors, and the short labels of nodes."""

from __future__ import annotations

from typing import NamedTuple

from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Constant
from graphkb.ir.node import Node
from graphkb.ir.text import SymbolNames, body_names, format_attr, format_node, inline_body


class Family(NamedTuple):
    """A kind of node as pictures show it."""

    name: str
    fill: str
    line: str


INPUT = Family("input", "#dbeafe", "#2563eb")
VARIABLE = Family("variable", "#fef3c7", "#d97706")
CONSTANT = Family("constant", "#f1f5f9", "#94a3b8")
ELEMENTWISE = Family("element-wise", "#dcfce7", "#16a34a")
SHAPE = Family("shape", "#cffafe", "#0891b2")
REDUCE = Family("reduction", "#ede9fe", "#7c3aed")
DOT = Family("dot, conv", "#ffe4e6", "#e11d48")
INDEX = Family("index", "#fce7f3", "#c026d3")
FUSED = Family("fused", "#ffedd5", "#ea580c")
OTHER = Family("other", "#f5f5f4", "#57534e")
RESULT = Family("output, update", "#334155", "#0f172a")

FAMILIES = (INPUT, VARIABLE, CONSTANT, ELEMENTWISE, SHAPE, REDUCE, DOT, INDEX, FUSED, OTHER, RESULT)
_BY_NAME = {"placeholder": INPUT, "variable": VARIABLE}
_BY_KIND = {
    "leaf": CONSTANT,
    "elementwise": ELEMENTWISE,
    "view": SHAPE,
    "move": SHAPE,
    "reduce": REDUCE,
    "dot": DOT,
    "conv": DOT,
    "pool": DOT,
    "index": INDEX,
    "fused": FUSED,
}


def family(node: Node) -> Family:
    """The family of a node, from its op's name or kind."""
    body = body_of(node)
    if body is not None:
        work = _work(body)
        return family(work[0]) if len(work) == 1 and body_of(work[0]) is None else FUSED
    return _BY_NAME.get(node.op.name) or _BY_KIND.get(node.op.kind, OTHER)


def body_of(node: Node) -> Graph | None:
    """The body of a fused node; None for all others."""
    return inline_body(node)


def _work(body: Graph) -> list[Node]:
    """The nodes of a body that compute something."""
    return [node for node in body.nodes if node.op.kind != "leaf"]


def inline_value(node: Node) -> str | None:
    """The text of a constant of one element, which pictures write into its users; None for all other nodes."""
    if node.op.name != "constant":
        return None
    constant = node.attrs["value"]
    if not isinstance(constant, Constant) or constant.array.size != 1:
        return None
    return str(constant.array.reshape(())[()])


def title(node: Node) -> str:
    """The heading of a node: its op, or the name of a leaf; inlined constants stand among its operands."""
    match node.op.name:
        case "placeholder":
            return str(node.attrs["key"].name)
        case "variable":
            return str(node.attrs["cell"].name)
        case "constant":
            return inline_value(node) or "constant"
    body = body_of(node)
    if body is not None:
        work = _work(body)
        return work[0].op.name if len(work) == 1 else node.op.name
    values = [inline_value(i) for i in node.inputs]
    if all(v is None for v in values):
        return node.op.name
    return f"{node.op.name}({', '.join('·' if v is None else v for v in values)})"


def details(node: Node, symbols: SymbolNames, width: int = 44) -> list[str]:
    """Further lines: what a fused node does, or the attributes that say something."""
    body = body_of(node)
    if body is not None:
        work = _work(body)
        return wrap([n.op.name for n in work], " · ", width, 4) if len(work) > 1 else []
    if node.op.kind == "leaf" and node.op.name not in ("size", "iota", "positions"):
        return []
    shown = [f"{name}={format_attr(v, symbols)}" for name, v in node.attrs.items() if v not in ((), False, None)]
    return [clip(line, width) for line in wrap(shown, " ", width, 2)]


def wrap(words: list[str], separator: str, width: int, most: int) -> list[str]:
    """The words in at most `most` lines of about `width` characters; the last line counts what is left out."""
    lines: list[str] = []
    for i, word in enumerate(words):
        if lines and len(lines[-1]) + len(separator) + len(word) <= width:
            lines[-1] += separator + word
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] += f" … +{len(words) - i}"
            break
    return lines


def clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def hint(node: Node, names: dict[Node, str], symbols: SymbolNames) -> str:
    """What a tooltip says: the node's line of the text form, its body, and the user's line that built it."""
    lines = [clip(format_node(node, names, symbols), 400)]
    body = inline_body(node)
    if body is not None:
        inner = body_names(node, body, names)
        members = [n for n in body.nodes if n.op.name != "placeholder"][:40]
        lines += ["    " + clip(format_node(n, inner, symbols), 160) for n in members]
    if node.origin is not None:
        text = node.origin.text
        lines.append(f"built at {node.origin.short}" + (f": {clip(text, 160)}" if text else ""))
    return "\n".join(lines)
