"""What the command line works on: programs named as `file.py:name`, and values for their inputs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from graphkb.dumps import as_graph
from graphkb.ir.dims import Dim, Expr, Symbol, free_symbols, show_shape, substitute
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node
from graphkb.ir.types import FLOATS, NUMPY_DTYPE
from graphkb.runtime.function import Function
from graphkb.runtime.inputs import as_array, placeholder_name

DEFAULT_SIZE = 32  # of an axis whose size nothing tells


class UsageError(Exception):
    """The command was not given what it needs: exit code 2."""


class SourceError(Exception):
    """The user's file failed: exit code 1."""


# ---------------------------------------------------------------------------------------------- programs
def load_source(text: str) -> Any:
    """The object that `file.py:name`, `module:name`, `graph.json` or a saved Keras model stands for, builders called.

    The name may be a path such as `build().predict`: attributes, and calls without arguments. What a program prints
    while it is loaded goes to standard error.

    Raises:
        UsageError: there is no such file or name, or it is nothing that has a graph.
        SourceError: the file, or a builder in it, raised an exception.
    """
    if text.endswith((".h5", ".hdf5", ".yaml", ".yml")) or _is_keras_json(text):
        return _load_keras_model(text)
    if text.endswith(".json"):
        from graphkb.ir.export import from_json

        return from_json(_existing(text).read_text(encoding="utf-8"))
    place, colon, path = text.rpartition(":")
    with contextlib.redirect_stdout(sys.stderr):
        if not colon or not place or path.endswith(".py"):
            hint = f"; {text} has {_candidates(_load(text))}" if text.endswith(".py") and os.path.isfile(text) else ""
            raise UsageError(f"{text}: expected file.py:name, module:name, graph.json or model.h5{hint}")
        module = _load(place)
        return _resolve(module, place, path)


def _is_keras_json(text: str) -> bool:
    """Whether a file is what `model.to_json()` gave; a graph that dump wrote has other keys."""
    if not text.endswith(".json"):
        return False
    try:
        content = json.loads(_existing(text).read_text(encoding="utf-8"))
    except ValueError:
        return False  # the reader of graphs says what is wrong
    return isinstance(content, dict) and "class_name" in content and "config" in content


def _load_keras_model(text: str) -> Function:
    _existing(text)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            from graphkb.keras2.models import load_model_function

            return load_model_function(text)
        except Exception as error:
            raise SourceError(f"{text}: {type(error).__name__}: {error}") from error


def load_function(text: str) -> Function:
    """The program of a source as a function; it warns of variables whose values the source does not tell."""
    source = load_source(text)
    if isinstance(source, Graph) and text.endswith(".json"):
        rows = json.loads(Path(text).read_text(encoding="utf-8"))["cells"]
        unknown = [str(row["name"]) for row in rows if "data" not in row]
        if unknown:
            warnings.warn(f"{text} has no values of {', '.join(unknown)}: they are zeros", stacklevel=2)
    return source if isinstance(source, Function) else Function(_named(source, text))


def load_program(text: str) -> Any:
    """The program of a source as something to dump: a function, or a graph that carries the source's name."""
    source = load_source(text)
    return source if isinstance(source, Function) else _named(source, text)


def _named(source: Any, text: str) -> Graph:
    name = text.rpartition(":")[2].replace("()", "").rpartition(".")[2]
    try:
        return as_graph(source, name or "graph")
    except TypeError:
        raise UsageError(
            f"{text} is of type {type(source).__name__}; expected a function, a tensor, a list of tensors or a graph, "
            "or a builder without arguments that returns one"
        ) from None


def _existing(path: str) -> Path:
    if not os.path.isfile(path):
        raise UsageError(f"{path}: there is no such file")
    return Path(path)


def _load(place: str) -> ModuleType:
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(error.name + ".")):
                raise UsageError(f"{place}: there is no such file or module") from None
            raise _failed(place, error) from error
        except (Exception, SystemExit) as error:
            raise _failed(place, error) from error
    path = _existing(place).resolve()
    sys.path.insert(0, str(path.parent))  # as python does for a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failed(place, error) from error
    return module


def _resolve(module: ModuleType, place: str, path: str) -> Any:
    obj: Any = module
    for part in path.split("."):
        name = part.removesuffix("()")
        if not hasattr(obj, name):
            known = f"; it has {_candidates(module)}" if obj is module else ""
            raise UsageError(f"{place} has no {path.partition(part)[0]}{name}{known}")
        obj = getattr(obj, name)
        if part.endswith("()"):
            obj = _call(obj, f"{place}:{path}")
    return _call(obj, f"{place}:{path}") if _is_builder(obj) else obj


def _is_builder(obj: Any) -> bool:
    return callable(obj) and not isinstance(obj, (Function, Node)) and not hasattr(obj, "node")


def _call(builder: Any, where: str) -> Any:
    problem = _missing_arguments(builder)
    if problem:
        raise UsageError(f"{where}: a builder is called without arguments, but it is {problem}")
    try:
        return builder()
    except (Exception, SystemExit) as error:
        raise _failed(where, error) from error


def _missing_arguments(builder: Any) -> str:
    """What a call without arguments would lack; empty where it can be tried."""
    try:
        inspect.signature(builder).bind()
    except TypeError as error:
        return str(error)
    except ValueError:
        pass  # a built-in function that does not tell
    return ""


def _failed(where: str, error: BaseException) -> SourceError:
    """The user's exception in one line, with the line of the user's file where it came from."""
    line = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if os.path.basename(file) == os.path.basename(where.partition(":")[0]):
            line = f", line {trace.tb_lineno}"
        trace = trace.tb_next
    return SourceError(f"{where}{line}: {type(error).__name__}: {error}")


def _candidates(module: ModuleType) -> str:
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, type) or getattr(value, "__module__", None) == "builtins":
            continue
        own = inspect.isfunction(value) and value.__module__ == module.__name__ and not _missing_arguments(value)
        if own or _is_program(value) or (isinstance(value, (list, tuple)) and value and all(map(_is_program, value))):
            found.append(f"{name}()" if own else name)
    return f"the names {', '.join(found)}" if found else "no name of a program"


def _is_program(value: Any) -> bool:
    return isinstance(value, (Function, Graph, Node)) or isinstance(getattr(value, "node", None), Node)


# ---------------------------------------------------------------------------------------------- values
def parse_pairs(items: Sequence[str], what: str, example: str) -> dict[str, str]:
    """`name=text` arguments as a dict.

    Raises:
        UsageError: one is not of that form, or a name stands twice.
    """
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name or name in pairs:
            problem = "a name twice" if equals and name in pairs else repr(item)
            raise UsageError(f"--{what}: got {problem}; expected NAME=VALUE, as in --{what} {example}")
        pairs[name] = text
    return pairs


def parse_shapes(items: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """`x=32,64` arguments as shapes by the names of placeholders; None for no arguments."""
    shapes = {}
    for name, text in parse_pairs(items, "shape", "x=32,64").items():
        try:
            shape = tuple([int(part) for part in text.replace("x", ",").strip("()[], ").split(",") if part.strip()])
        except ValueError:
            shape = (-1,)
        if any(size < 0 for size in shape):
            raise UsageError(f"--shape {name}={text}: expected sizes, as in --shape {name}=32,64")
        shapes[name] = shape
    return shapes or None


def make_inputs(function: Function, items: Sequence[str], sizes: Sequence[str], seed: int) -> list[Array]:
    """One array for each placeholder.

    Args:
        items: `x=file.npy`, `x=file.npz:key`, `x=1,2,3`, `x=[[1,2],[3,4]]`, `x=random`, or `random` for all inputs
            that are not given. `x` is a placeholder's name or its position.
        sizes: `batch=16`: what unknown sizes are in random inputs.
        seed: for the random inputs.

    Raises:
        UsageError: an argument does not fit.
    """
    rest_random = "random" in items
    given = parse_pairs([item for item in items if item != "random"], "input", "x=1,2,3")
    names = [placeholder_name(node) for node in function.inputs]
    chosen: dict[int, str] = {}
    for name, text in given.items():
        if name in names:
            chosen[names.index(name)] = text
        elif name.isdigit() and int(name) < len(names):
            chosen[int(name)] = text
        else:
            raise UsageError(f"--input {name}=…: there is no such input; {_describe_inputs(function)}")
    missing = [names[i] for i in range(len(names)) if i not in chosen]
    if missing and not rest_random:
        raise UsageError(
            f"no value for {', '.join(missing)}: use --input {missing[0]}=VALUE, or --input random; "
            + _describe_inputs(function)
        )
    values: dict[int, Array] = {i: _value(t, function.inputs[i], names[i]) for i, t in chosen.items() if t != "random"}
    bindings = _bind_sizes(function, values, parse_pairs(sizes, "size", "batch=16"))
    generator = np.random.default_rng(seed)
    for i, node in enumerate(function.inputs):
        if i not in values:
            values[i] = _random(generator, node, bindings)
    return [values[i] for i in range(len(names))]


def _describe_inputs(function: Function) -> str:
    if not function.inputs:
        return f"{function.name} takes no inputs"
    shown = ", ".join(f"{placeholder_name(node)}: {node.type!r}" for node in function.inputs)
    return f"{function.name} takes {shown}"


def _value(text: str, node: Node, name: str) -> Array:
    array = _read(text, name)
    if isinstance(array, list):
        array = as_array(array, node.dtype, name)
    if array.ndim != node.ndim:
        array = _fit(array, node, name)
    return as_array(array, node.dtype, name)


def _read(text: str, name: str) -> Any:
    file, _, key = text.partition(".npz:") if ".npz:" in text else (text, "", "")
    path = file + ".npz" if key else text
    if path.endswith((".npy", ".npz")):
        try:
            content = np.load(_existing(path), allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            if not key and len(content.files) != 1:
                raise UsageError(f"--input {name}={text}: name one of its arrays, as in {text}:{content.files[0]}")
            return content[key or content.files[0]]
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"--input {name}={text}: {error}") from None
    try:
        return json.loads(text if text.lstrip().startswith("[") else f"[{text}]")
    except ValueError:
        pass
    try:
        return [float(part) for part in text.split(",")]  # nan and inf
    except ValueError:
        raise UsageError(
            f"--input {name}={text}: expected file.npy, file.npz:key, numbers as in 1,2,3 or [[1,2],[3,4]], or random"
        ) from None


def _fit(array: Array, node: Node, name: str) -> Array:
    """Numbers in the shape of a placeholder, where at most one of its sizes is open."""
    if array.ndim == node.ndim:
        return array
    try:
        return array.reshape([d if isinstance(d, int) else -1 for d in node.shape])
    except ValueError:
        raise UsageError(
            f"--input {name}: {array.size} numbers do not fill the shape {show_shape(node.shape)}; "
            "write nested lists, as in [[1,2],[3,4]], or give a file"
        ) from None


def _bind_sizes(function: Function, values: dict[int, Array], given: dict[str, str]) -> dict[Symbol, int]:
    symbols: dict[str, Symbol] = {}
    for node in function.inputs:
        for dim in node.shape:
            for symbol in free_symbols(dim):
                symbols.setdefault(symbol.name, symbol)
    bindings: dict[Symbol, int] = {}
    for name, text in given.items():
        if name not in symbols or not text.isdigit():
            known = f"one of {', '.join(symbols)}" if symbols else "nothing: all sizes are known"
            raise UsageError(f"--size {name}={text}: expected a number for {known}")
        for node in function.inputs:
            for dim in node.shape:
                bindings.update({s: int(text) for s in free_symbols(dim) if s.name == name})
    for i, array in values.items():
        for dim, size in zip(function.inputs[i].shape, array.shape):
            symbols_here = free_symbols(dim)
            # Of x: [n] and y: [n], the given one tells the size of the random one.
            bindings.update({s: size for s in symbols_here if substitute(dim, {s: size}) == size})
    return bindings


def _random(generator: np.random.Generator, node: Node, bindings: dict[Symbol, int]) -> Array:
    """Standard normal floats, integers from 0 to 9, or fair bools."""
    shape = [_size(dim, bindings) for dim in node.shape]
    if node.dtype in FLOATS:
        return generator.standard_normal(shape).astype(NUMPY_DTYPE[node.dtype])
    return generator.integers(0, 2 if node.dtype == "bool" else 10, shape).astype(NUMPY_DTYPE[node.dtype])


def _size(dim: Dim, bindings: dict[Symbol, int]) -> int:
    if not isinstance(dim, Expr):
        return dim
    for symbol in free_symbols(dim):
        bindings.setdefault(symbol, DEFAULT_SIZE)
    size = substitute(dim, bindings)
    assert isinstance(size, int)
    return size
