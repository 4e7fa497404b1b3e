"""`python -m graphkb.keras2 script.py args…`: run a Keras 2 program, unchanged, with this backend."""

from __future__ import annotations

import os
import runpy
import sys
from types import ModuleType

import graphkb.keras2  # noqa: F401, importing it mends Keras

USAGE = """usage: python -m graphkb.keras2 script.py [args …]
       python -m graphkb.keras2 -m module [args …]
       python -m graphkb.keras2 -c code [args …]

Runs a program written for Keras 2.3.1 as python itself would, with graphkb as the backend of Keras."""


def main(arguments: list[str]) -> int:
    """Run the program that the arguments name, as the main module of this process."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    option, rest = arguments[0], arguments[1:]
    if option in ("-m", "-c"):
        if not rest:
            print(f"{option}: expected {'a module' if option == '-m' else 'code'}\n{USAGE}", file=sys.stderr)
            return 2
        sys.path[0] = os.getcwd() if option == "-m" else ""
        if option == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest[1:]]
            _run(compile(rest[0], "<string>", "exec"), None)
        return 0
    if option.startswith("-"):
        print(f"{option}: there is no such option\n{USAGE}", file=sys.stderr)
        return 2
    if not os.path.isfile(option):
        print(f"{option}: there is no such file", file=sys.stderr)
        return 2
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(option))
    with open(option, "rb") as file:
        code = compile(file.read(), option, "exec")
    _run(code, option)
    return 0


def _run(code: object, path: str | None) -> None:
    """Run code in a new main module, which worker processes find by its file and pickles by its name."""
    module = ModuleType("__main__")
    vars(module).update(__builtins__=__builtins__, __spec__=None, __loader__=None)
    if path is not None:
        module.__file__ = os.path.abspath(path)
    sys.modules["__main__"] = module
    exec(code, vars(module))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
