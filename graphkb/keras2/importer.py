"""The import hook that rewrites lines of Keras' modules as they load, without touching files or byte-code caches."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType

from graphkb.keras2.patches import AFTER_LOADING, PATCHES, apply_patches

SERIES = "2.3."


class PatchingLoader(importlib.machinery.SourceFileLoader):
    """Compiles the patched text of a module; never reads or writes its byte-code file."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        text = importlib.util.decode_source(self.get_data(path))
        return compile(apply_patches(fullname, text), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for action in AFTER_LOADING.get(module.__name__, ()):
            action(module)


class KerasFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of the tables as the other finders do, and gives them the patching loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "keras" and fullname not in PATCHES and fullname not in AFTER_LOADING:
            return None
        spec = None
        for finder in sys.meta_path:
            if not isinstance(finder, KerasFinder) and hasattr(finder, "find_spec"):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    break
        if spec is None or not spec.origin or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return spec
        if fullname == "keras":
            check_version(spec.origin)
            return spec
        spec.loader = PatchingLoader(fullname, spec.origin)
        return spec


def check_version(path: str) -> None:
    """Refuse releases of Keras that do not run on a backend of this kind.

    Args:
        path: the `__init__.py` of the package.

    Raises:
        ImportError: it is not of the 2.3 series; the text tells how to get it.
    """
    with open(path, "rb") as file:
        text = importlib.util.decode_source(file.read())
    found = re.search(r"^__version__ = ['\"](.*)['\"]", text, re.MULTILINE)  # every release of the series says it so
    if found is None or not found[1].startswith(SERIES):
        version = found[1] if found else _installed_version()
        raise ImportError(
            f"graphkb.keras2 serves Keras 2.3.1, the last with exchangeable backends; {path} is Keras {version}."
            " Install it with: pip install 'keras==2.3.1'",
            name="keras",
            path=path,
        )


def _installed_version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("keras")
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


def install_importer() -> bool:
    """Put the finder in front of the others.

    Returns:
        Whether it stood there already.
    """
    if any(isinstance(finder, KerasFinder) for finder in sys.meta_path):
        return True
    sys.meta_path.insert(0, KerasFinder())
    for name, actions in AFTER_LOADING.items():
        if name in sys.modules:
            for action in actions:
                action(sys.modules[name])
    return False
