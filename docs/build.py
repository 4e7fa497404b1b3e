"""Writes the API reference, docs/api.md and docs/api/, from signatures and docstrings: `python docs/build.py`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

import graphkb  # noqa: E402 - the checkout that this file belongs to
from graphkb import aot, backend, cli  # noqa: E402
from graphkb.runtime import function, options  # noqa: E402

NOTE = "<!-- Written by docs/build.py from the docstrings: change those, then run it. -->\n"

# The modules of graphkb.backend in the order of the reference, with the titles of their pages.
THEMES = {
    "config": "Configuration",
    "creation": "Creating tensors",
    "tensors": "Tensors and variables",
    "sparse": "Sparse tensors",
    "shapes": "Shapes and views",
    "joining": "Joining, repeating, slicing and padding",
    "math": "Element-wise functions",
    "extra_math": "More element-wise functions",
    "reductions": "Reductions",
    "linalg": "Products",
    "nn": "Neural networks",
    "losses": "Losses",
    "conv": "Convolution",
    "local_conv": "Locally connected layers",
    "pooling": "Pooling",
    "images": "Resizing",
    "random": "Random numbers",
    "control": "Choices and the learning phase",
    "loops": "Loops",
    "ctc": "Connectionist temporal classification",
    "execution": "Functions, values and gradients",
    "state": "State",
}


# ----------------------------------------------------------------------------------------------- docstrings
def first_sentence(doc: str) -> str:
    """What stands before the first full stop, on one line."""
    text = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", text)[0]


def to_markdown(doc: str) -> str:
    """A docstring: sections become lists, examples and indented lines become code."""
    blocks: list[str] = []
    section = ""
    for block in re.split(r"\n\s*\n", doc):
        heading = re.match(r"(Args|Returns|Raises|Attributes|Example):\n", block)
        if heading:
            section, block = heading[1], inspect.cleandoc(block[heading.end() :])
            if section != "Example":
                items = _items(block) if section in ("Args", "Attributes") else block
                blocks.append(f"{'Arguments' if section == 'Args' else section}:\n\n{items}")
                continue
        if block.lstrip().startswith(">>>"):
            blocks.append(f"```pycon\n{inspect.cleandoc(block)}\n```")
        elif block.startswith("    "):
            blocks.append(f"```text\n{inspect.cleandoc(block)}\n```")
        else:
            blocks.append(block)
    return "\n\n".join(blocks) + "\n"


def _items(block: str) -> str:
    """`name: text` entries, their further lines indented, as a list."""
    lines = []
    for line in block.splitlines():
        entry = re.match(r"(\*{0,2}\w+): ", line)
        lines.append(f"- `{entry[1]}`: {line[entry.end() :]}" if entry else f"  {line.strip()}")
    return "\n".join(lines)


def signature(name: str, value: Any) -> str:
    """A call as one writes it: names and defaults, no types."""
    found = inspect.signature(inspect.unwrap(value))
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values() if p.name != "self"]
    return f"{name}{found.replace(parameters=parameters, return_annotation=found.empty)}"


def entry(name: str, value: Any, level: str = "###") -> str:
    """The description of a function or a class."""
    doc = inspect.getdoc(value) or ""
    text = f"{level} {name}\n\n`{signature(name, value)}`\n\n{to_markdown(doc)}"
    if inspect.isclass(value):
        members = "".join(f"- `{call}`: {sentence}\n" for call, sentence in _members(value))
        text += f"\nMembers:\n\n{members}" if members else ""
    return text


def _members(kind: type) -> Iterable[tuple[str, str]]:
    for name, member in vars(kind).items():
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        call = name if isinstance(member, property) else signature(name, member)
        yield call, first_sentence(inspect.getdoc(member) or "")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; bars in its cells are escaped."""
    head = list(head)
    lines = [head, ["---"] * len(head), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# ---------------------------------------------------------------------------------------------------- pages
def by_module() -> dict[str, list[str]]:
    """The names of K by the module that defines them, both in the order of the reference."""
    found: dict[str, list[str]] = {}
    for name in backend.__all__:
        module = inspect.unwrap(getattr(backend, name)).__module__.rpartition(".")[2]
        found.setdefault(module, []).append(name)
    unknown = sorted(set(found) - set(THEMES))
    if unknown:
        raise SystemExit(f"docs/build.py: no title in THEMES for {', '.join(unknown)}")
    return {module: sorted(found[module]) for module in THEMES if module in found}


def pages() -> dict[str, str]:
    """All pages of the reference: their paths in docs/, and their texts."""
    made = {}
    index = f"""# API reference

{NOTE}
`from graphkb import backend as K` gives the functions of the Keras 2.3.1 backend API. What their arguments mean for
dtypes, shapes and gradients stands in [What expressions mean](semantics.md). Bad arguments are a `ValueError` or a
`TypeError` that names the function. Beside K there are [the package's own functions](api/graphkb.md),
[options](api/options.md) and [commands](api/commands.md).
"""
    for module, names in by_module().items():
        title = THEMES[module]
        rows = []
        page = f"# {title}\n\n{NOTE}\n{inspect.getdoc(sys.modules[f'graphkb.backend.{module}'])}\n"
        page += "\n[All functions](../api.md)\n"
        for name in names:
            value = getattr(backend, name)
            link = f"[`{signature(name, value)}`](api/{module}.md#{name.lower()})"
            rows.append([link, first_sentence(inspect.getdoc(value) or "")])
            page += f"\n{entry(name, value, '##')}"
        made[f"api/{module}.md"] = page
        index += f"\n## {title}\n\n{table(['function', 'what it gives'], rows)}"
    made["api.md"] = index
    made["api/graphkb.md"] = _package()
    made["api/options.md"] = _options()
    made["api/commands.md"] = _commands()
    return made


def _package() -> str:
    text = f"# The package\n\n{NOTE}\n"
    text += "`import graphkb` needs NumPy alone; llvmlite and networkx are imported when they are first used.\n"
    parts: list[tuple[str, Any]] = [
        ("graphkb.dump", graphkb.dump),
        ("graphkb.compile", graphkb.compile),
        ("graphkb.load", graphkb.load),
        ("graphkb.options", graphkb.options),
        ("graphkb.thread_count", graphkb.thread_count),
        ("CompiledFiles", aot.CompiledFiles),
        ("Library", aot.Library),
        ("CacheInfo", function.CacheInfo),
    ]
    text += "".join(f"\n{entry(name, value, '##')}" for name, value in parts)
    # What K.function returns: its methods are what users call most.
    text += f"\n## Function\n\nWhat `K.function` returns.\n\n{to_markdown(inspect.getdoc(function.Function) or '')}"
    for name, member in vars(function.Function).items():
        if isinstance(member, property):
            text += f"\n### Function.{name}\n\n{to_markdown(inspect.getdoc(member) or '')}"
        elif callable(member) and not name.startswith("_"):
            text += f"\n{entry(f'Function.{name}', member)}"
    return text


def _options() -> str:
    doc = inspect.getdoc(options.Options) or ""
    summary, _, attributes = doc.partition("\n\nAttributes:\n")
    meaning = {}
    for item in re.split(r"\n(?=- )", _items(inspect.cleandoc(attributes))):
        name, text = re.match(r"- `(\w+)`: (.*)", item, re.DOTALL).groups()  # type: ignore[union-attr]
        meaning[name] = " ".join(text.split())
    rows = [
        [f"`{field.name}`", f"`{options.VARIABLES[field.name]}`", f"`{field.default!r}`", meaning[field.name]]
        for field in dataclasses.fields(options.Options)
    ]
    others = [
        ["`OMP_NUM_THREADS`", "how many threads functions use where neither `threads` nor its variable says"],
        ["`XDG_CACHE_HOME`", "the folder in which the kernel cache makes its own; `~/.cache` by default"],
        ["`KERAS_BACKEND`", "the backend of Keras 2.3.1; `graphkb.keras2` sets it to graphkb's unless it is set"],
        ["`KERAS_HOME`", "the folder of keras.json, which K reads when it is imported; `~/.keras` by default"],
        ["`CC`", "the C compiler with which `graphkb.compile` links libraries"],
    ]
    return f"""# Options

{NOTE}
{summary}

`graphkb.options(mode="interpret")` sets them for a block; an environment variable sets the default. One that is not
set, or empty, counts for nothing; a wrong value is an `OptionError`.

{table(["option", "environment", "default", "meaning"], rows)}
## Other environment variables

{table(["variable", "meaning"], others)}"""


def _commands() -> str:
    parser = cli._parser()
    (commands,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    text = f"# Commands\n\n{NOTE}\n{parser.description} `python -m graphkb` is the same as `graphkb`.\n"
    for name, command in commands.choices.items():
        rows = [[_usage(a), (a.help or "") % vars(a)] for a in command._actions if a.dest != "help"]
        places = [a.metavar or a.dest for a in command._actions if not a.option_strings]
        text += f"\n## graphkb {name}\n\n{command.description}\n\n"
        text += f"```text\n{' '.join(['graphkb', name, '[options]', *map(str, places)])}\n```\n\n"
        text += table(["argument", "meaning"], rows)
        text += f"\n```text\n{command.epilog.rstrip()}\n```\n" if command.epilog else ""
    return f"{text}\n## Sources, exit codes and examples\n\n```text\n{(parser.epilog or '').rstrip()}\n```\n"


def _usage(action: argparse.Action) -> str:
    place = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    names = ", ".join(action.option_strings)
    choices = "" if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}"
    return f"`{' '.join(part for part in (names, choices or place) if part)}`"


def write(folder: Path = DOCS, say: Callable[[str], Any] = print) -> None:
    """Write all pages and remove those that are no longer made."""
    made = pages()
    for old in (folder / "api").glob("*.md"):
        if f"api/{old.name}" not in made:
            old.unlink()
    (folder / "api").mkdir(exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    say(f"{len(made)} pages in {folder}")


if __name__ == "__main__":
    write()
