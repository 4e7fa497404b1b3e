"""The documentation: the API reference is current and complete, its Python code runs, its links lead somewhere."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from graphkb import backend as K
from graphkb.backend import config
from graphkb.runtime.options import VARIABLES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINKING = [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FUNCTIONS = [name for name in K.__all__ if not inspect.isclass(getattr(K, name))]


def _builder():
    spec = importlib.util.spec_from_file_location("docs_build", DOCS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made():
    return _builder().pages()


# ------------------------------------------------------------------------------------------- the reference
def test_the_reference_is_current(made):
    stale = [n for n, text in made.items() if not (DOCS / n).exists() or (DOCS / n).read_text("utf-8") != text]
    assert stale == [], "run python docs/build.py"
    assert {f"api/{p.name}" for p in (DOCS / "api").iterdir()} == set(made) - {"api.md"}


def test_every_name_has_one_row_and_one_section(made):
    rows = re.findall(r"^\| \[`(\w+)\(.*\]\((api/\w+\.md)#(\w+)\) \| .+ \|$", made["api.md"], re.MULTILINE)
    assert sorted(name for name, _, _ in rows) == sorted(K.__all__)
    for name, page, anchor in rows:
        assert anchor == name.lower()
        assert len(re.findall(rf"^## {name}$", made[page], re.MULTILINE)) == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_describe_every_parameter(name):
    value = getattr(K, name)
    doc = inspect.getdoc(value)
    for parameter in inspect.signature(value).parameters:
        assert re.search(rf"^    \*{{0,2}}{parameter}: \S", doc, re.MULTILINE), parameter
    assert doc.split("\n")[0].rstrip().endswith((".", ":")) or "\n\n" in doc


def test_every_option_and_command_is_listed(made):
    assert all(f"| `{option}` | `{variable}` |" in made["api/options.md"] for option, variable in VARIABLES.items())
    commands = re.findall(r"^## graphkb (\w+)$", made["api/commands.md"], re.MULTILINE)
    assert commands == ["dump", "compile", "run", "profile", "bench", "doctor"]


def test_rendering_of_a_docstring():
    build = _builder()
    doc = "Do it.\n\nArgs:\n    x: numbers,\n        many.\n\nReturns:\n    One.\n\n>>> 1\n1"
    assert build.to_markdown(doc) == (
        "Do it.\n\nArguments:\n\n- `x`: numbers,\n  many.\n\nReturns:\n\nOne.\n\n```pycon\n>>> 1\n1\n```\n"
    )
    assert build.first_sentence("The first. The second.") == "The first."
    assert build.table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |\n"


def test_writing_removes_pages_of_old(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "gone.md").write_text("old")
    _builder().write(tmp_path, say=lambda text: None)
    assert not (tmp_path / "api" / "gone.md").exists()
    assert (tmp_path / "api.md").read_text("utf-8").startswith("# API reference")


# ----------------------------------------------------------------------------------------- code and links
def _code(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [p for p in PAGES if _code(p)], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = vars(config.settings()).copy()
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(_code(page)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
    assert vars(config.settings()) == before


def _anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"(?<!\!)\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file), target


def test_the_index_links_every_page():
    linked = set(re.findall(r"\]\(([\w./-]+\.md)\)", (DOCS / "index.md").read_text("utf-8")))
    pages = {p.relative_to(DOCS).as_posix() for p in DOCS.glob("*.md")} - {"index.md"}
    assert pages <= linked
    assert "../README.md" in linked
