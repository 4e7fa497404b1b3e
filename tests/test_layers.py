"""Layers point one way, mapped folders are imported by their full names, heavy libraries late."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("ir", "ops", "passes", "codegen", "runtime", "backend")
# Modules outside the six folders, with the layer on whose level they stand.
LEVELS = {
    "gradients": "ops",
    "gradient_masks": "ops",
    "gradient_sums": "ops",
    "dumps": "runtime",
    "dumps_folder": "runtime",
    "dumps_html": "runtime",
}
ABOVE_ALL = len(LAYERS)


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the package; the two symlinks lead to passes/ and codegen/."""
    for folder in [ROOT / "graphkb", *(ROOT / "graphkb" / layer for layer in LAYERS)]:
        for path in sorted(folder.resolve().rglob("*.py")):
            inner = path.relative_to(folder.resolve()).with_suffix("").parts
            if folder.name == "graphkb" and inner[0] in LAYERS:
                continue
            prefix = () if folder.name == "graphkb" else (folder.name,)
            yield ".".join(("graphkb", *prefix, *inner)).removesuffix(".__init__"), path


def level(module: str) -> int:
    """How high a module stands; those of no layer stand above all."""
    part = [*module.split("."), ""][1]
    part = LEVELS.get(part, part)
    return LAYERS.index(part) if part in LAYERS else ABOVE_ALL


def imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every import in a file, also inside functions; type-checking blocks do not count."""
    tree = ast.parse(path.read_text(), str(path))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in node.body
        for inner in ast.walk(child)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def test_there_are_modules_in_every_layer() -> None:
    found = {level(name) for name, path in modules() if path.name != "__init__.py"}
    assert found >= set(range(len(LAYERS)))


@pytest.mark.parametrize(("module", "path"), [pytest.param(n, p, id=n) for n, p in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} imports {other}"
        for line, other in imports(path, module)
        if other.startswith("graphkb.") and level(other) > level(module)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("module", "path"), [pytest.param(n, p, id=n) for n, p in modules()])
def test_no_module_is_imported_under_its_folder_name(module: str, path: Path) -> None:
    wrong = [other for _, other in imports(path, module) if other.split(".")[0] in ("passes", "codegen")]
    assert not wrong


@pytest.mark.parametrize("statement", ["import graphkb", "import graphkb.backend", "from graphkb import backend as K"])
def test_import_does_not_load(statement: str) -> None:
    """llvmlite and networkx cost tens of milliseconds and may be missing."""
    heavy = ("llvmlite", "networkx", "scipy")
    code = f"import sys; {statement}; print([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_works_without_llvmlite_and_networkx() -> None:
    """A blocked import stands for a missing package: functions still run, interpreted."""
    code = """
import sys
sys.modules["llvmlite"] = sys.modules["networkx"] = None
import numpy as np
from graphkb import backend as K
x = K.placeholder((None, 2))
w = K.variable([[1.0], [2.0]])
f = K.function([x], [K.dot(x, w) + 1.0], updates=[(w, w * 2.0)])
print(f([np.ones((1, 2), "float32")])[0].item(), f([np.ones((1, 2), "float32")])[0].item())
import graphkb
try:
    graphkb.compile(f, "f.so")
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    missing = "compile: it needs llvmlite, which is not installed: pip install llvmlite"
    assert (run.stdout.splitlines(), run.stderr) == (["4.0 7.0", missing], "")
