"""One offline page of all stages of a program: text, picture, and what each pass changed."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Sequence

from graphkb.ir.export import LARGEST_PICTURE, to_svg
from graphkb.ir.graph import Graph
from graphkb.ir.text import format_graph

_MOST_LINES = 1500  # a stage with more lines is not compared: that would take longer than the compilation
_NUMBER = re.compile(r"%[\d.]+|\s+#")  # the comments stand where the length of the numbers puts them

_STYLE = """
:root{--fg:#0f172a;--dim:#64748b;--bg:#fff;--panel:#f8fafc;--line:#e2e8f0;--on:#2563eb;--add:#dcfce7;--del:#fee2e2}
*{box-sizing:border-box}
body{margin:0;font:14px Helvetica,Arial,sans-serif;color:var(--fg);background:var(--bg);display:flex;min-height:100vh}
nav{width:15rem;flex:none;background:var(--panel);border-right:1px solid var(--line);padding:1rem 0;position:sticky;
top:0;height:100vh;overflow:auto}
nav h1{font-size:1.05rem;margin:0 1rem .8rem;overflow-wrap:anywhere}
nav label{display:flex;justify-content:space-between;padding:.35rem 1rem;cursor:pointer}
nav label:hover{background:var(--line)}
nav small{color:var(--dim)}
main{flex:1;padding:1rem 1.5rem;min-width:0}
h2{font-size:1.1rem;margin:.2rem 0 .8rem}
pre{font:12px/1.5 Menlo,Consolas,'DejaVu Sans Mono',monospace;overflow:auto;margin:0 0 1.5rem;padding:.7rem;
background:var(--panel);border:1px solid var(--line);border-radius:6px}
pre .a{background:var(--add);display:block}
pre .d{background:var(--del);display:block}
pre .s{color:var(--dim);display:block}
.picture{overflow:auto;border:1px solid var(--line);border-radius:6px}
details{margin-bottom:1rem}
summary{cursor:pointer;color:var(--dim);margin-bottom:.5rem}
section{display:none}
input{position:absolute;opacity:0}
"""


def to_html(name: str, stages: Sequence[tuple[str, Graph | str]], selected: str) -> str:
    """A page that needs nothing else, not even a script: the stages on the left, the selected one on the right.

    Args:
        name: the program's name.
        stages: names with graphs, or with texts for what comes after the graph.
        selected: the stage that is shown first.
    """
    radios, labels, sections, rules = [], [], [], []
    before: list[str] | None = None
    pictured: Graph | None = None
    for i, (stage, content) in enumerate(stages):
        lines = (format_graph(content) if isinstance(content, Graph) else content).splitlines()
        comparable = isinstance(content, Graph) and before is not None
        changes = _changes(before, lines) if comparable and before is not None else None
        radios.append(f'<input type="radio" name="stage" id="r{i}"{" checked" if stage == selected else ""}>')
        labels.append(
            f'<label for="r{i}" id="l{i}"><span>{html.escape(stage)}</span>{_summary(content, changes)}</label>'
        )
        parts = [f"<h2>{html.escape(stage)}</h2>"]
        if changes:
            parts.append(f"<details open><summary>what changed</summary><pre>{_diff(changes)}</pre></details>")
        if isinstance(content, Graph) and len(content.nodes) <= LARGEST_PICTURE // 4 and not _same(content, pictured):
            pictured = content
            parts.append(f'<details><summary>picture</summary><div class="picture">{to_svg(content)}</div></details>')
        parts.append(f"<pre>{html.escape(chr(10).join(lines))}</pre>")
        sections.append(f'<section id="s{i}">{"".join(parts)}</section>')
        rules.append(f"#r{i}:checked~main #s{i}{{display:block}}")
        rules.append(
            f"#r{i}:checked~nav #l{i}{{background:var(--on);color:#fff}}#r{i}:checked~nav #l{i} small{{color:#fff}}"
        )
        before = lines if isinstance(content, Graph) else None
    title = html.escape(name)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}{''.join(rules)}</style></head>\n<body>{''.join(radios)}\n"
        f"<nav><h1>{title}</h1>{''.join(labels)}</nav>\n<main>{''.join(sections)}</main></body></html>\n"
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _same(a: Graph, b: Graph | None) -> bool:
    return b is not None and a.inputs == b.inputs and a.roots == b.roots


def _changes(before: list[str], after: list[str]) -> list[str] | None:
    """Lines with a leading " ", "-" or "+"; empty where nothing changed, None where the texts are too long to compare.

    Lines are compared without the numbers of the nodes, which a pass that adds one node changes everywhere.
    """
    if before == after:
        return []
    if max(len(before), len(after)) > _MOST_LINES:
        return None
    a, b = ([_NUMBER.sub("%", line) for line in lines] for lines in (before, after))
    out: list[str] = []
    for group in difflib.SequenceMatcher(None, a, b, autojunk=False).get_grouped_opcodes(2):
        out += ["@"] if out else []
        for tag, first, last, start, end in group:
            if tag == "equal":
                out += [" " + line for line in after[start:end]]
            else:
                out += ["-" + line for line in before[first:last]]
                out += ["+" + line for line in after[start:end]]
    return out


def _summary(content: Graph | str, changes: list[str] | None) -> str:
    if not isinstance(content, Graph):
        return f"<small>{len(content.splitlines()):,} lines</small>"
    if changes == []:
        return "<small>no change</small>"
    return f"<small>{len(content.nodes):,} nodes</small>"


def _diff(lines: list[str]) -> str:
    kinds = {"+": "a", "-": "d", "@": "s"}
    out = []
    for line in lines:
        kind = kinds.get(line[:1])
        text = "⋯" if line == "@" else html.escape(line)
        out.append(f'<span class="{kind}">{text}</span>' if kind else text + "\n")
    return "".join(out)
