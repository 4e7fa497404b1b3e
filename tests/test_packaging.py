"""The wheel holds exactly the tree: every module, the type marker, and no generic top-level name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a copy of the sources by the setuptools at hand, without network."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("graphkb", "passes", "codegen"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    out = tmp_path_factory.mktemp("wheel")
    run = subprocess.run([sys.executable, "-c", build, str(out)], cwd=copy, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def tree_modules() -> set[str]:
    """Where each module of the tree belongs in a wheel: passes/ and codegen/ go below graphkb/."""
    found = {p.relative_to(ROOT) for p in (ROOT / "graphkb").rglob("*.py")}
    found = {p for p in found if p.parts[1] not in ("passes", "codegen")}
    for name in ("passes", "codegen"):
        found |= {Path("graphkb") / p.relative_to(ROOT) for p in (ROOT / name).rglob("*.py")}
    return {p.as_posix() for p in found}


def test_wheel_has_every_module(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == tree_modules()


def test_wheel_has_nothing_generic_at_the_top(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel.namelist()} == {"graphkb"}


def test_wheel_is_typed_and_licensed(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "graphkb/py.typed" in names
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_wheel_needs_only_three_packages(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
    lines = wheel.read(metadata).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(line.split()[1].split(">")[0] for line in needed) == ["llvmlite", "networkx", "numpy"]


def test_links_lead_to_the_folders() -> None:
    for name in ("passes", "codegen"):
        assert (ROOT / "graphkb" / name).resolve() == (ROOT / name).resolve()
