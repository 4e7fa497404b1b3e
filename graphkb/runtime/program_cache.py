"""The program cache: what a call of a compiled graph needs, kept beside the kernels, so that no pass runs again.

An entry's name is a digest of the graph as it was built, the sizes of its inputs, and everything that decides what the
passes and the code generator make of it, their own source among that. The entry is a JSON text that names the entry of
the machine code, and says what memory the code takes. It is one more file of the kernel cache, with the same guards;
whatever is wrong with it counts as "not there".
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import astuple, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from graphkb.codegen.packed_weights import PackedLayout
from graphkb.ir import LOADED
from graphkb.ir.dims import Symbol
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE
from graphkb.runtime.call_spec import CallSpec
from graphkb.runtime.graph_key import GraphKey, OpaqueError, mere_seeds
from graphkb.runtime.kernel_cache import find_kernels, find_target, folder_of, read_entry, write_entry
from graphkb.runtime.options import Options
from graphkb.runtime.packed_copies import PackedCopy, copy_of, packed_constant
from graphkb.runtime.plan import (
    NativePlan,
    Plan,
    address_of,
    bound_memory,
    memory_address,
    obstacle,
    plain_array,
)
from graphkb.runtime.stored_plan import StoredPlan

if TYPE_CHECKING:
    from graphkb.codegen.target import Target

_FORMAT = 2
DECISIVE = ("mode", "fastmath", "target", "pack_weights")
"""The options that decide what is compiled: all others are about when, for how long, and who is told."""
# Constants that the passes computed are part of an entry, up to so many bytes.
_MOST_BYTES = 2**20
_SOURCES = ("ir", "ops", "passes", "codegen", "codegen.vecmath", "runtime")
# What an entry holds of a call, under the names of CallSpec; what is at its default need not be held.
_KEPT = ("inputs", "outputs", "workspace_bytes", "lock", "release_gil")
_MADE = ("run", "bound", "recycle", "keepalive", "copies")


@record
class Place:
    """Where the program of a graph is kept, if it is: the name of its entry, and what the entry refers to by number."""

    name: str
    graph: GraphKey
    target: Target


def find_place(graph: Graph, sizes: Mapping[Symbol, int], options: Options) -> Place | None:
    """The place of a graph's program for certain sizes; None where it has none.

    It has none where somebody wants to see the passes run (the options `debug` and `dump`), where nothing is kept, and
    where it can not be told whether another graph is the same.
    """
    if options.debug or options.dump is not None or obstacle(options) or not folder_of(options):
        return None
    sources = source_identity()
    if not sources:
        return None
    from graphkb.codegen.engine import code_identity

    try:
        key = GraphKey(graph, sizes)
    except (OpaqueError, ValueError):  # what is wrong with the sizes is told by whoever binds them
        return None
    target = find_target(options)
    chosen = [getattr(options, name) for name in DECISIVE]
    versions = (_FORMAT, sources, np.__version__, sys.version, sys.byteorder)
    head = repr((versions, code_identity(target, 2), chosen))
    return Place(hashlib.sha256(f"program\n{head}\n{key.text}".encode()).hexdigest(), key, target)


def read_plan(place: Place | None, options: Options, make: Callable[[], Plan]) -> StoredPlan | None:
    """The plan that is kept at a place; None where there is none that is whole.

    Args:
        make: makes the plan anew, with all that calls do not need.
    """
    data = read_entry(folder_of(options), place.name, options) if place is not None else None
    if place is None or data is None:
        return None
    with suppress(ValueError, TypeError, KeyError, IndexError, AttributeError):
        entry = json.loads(data)
        engine = find_kernels(entry["module"], place.target, options, entry["pooled"])
        if engine is None:
            return None
        cells, constants = list(place.graph.cells), list(place.graph.constants)
        memory: list[Array] = []
        for kind, value in entry["bound"]:
            match kind:
                case "cell":
                    memory.append(cells[value].array)
                case "constant":
                    memory.append(plain_array(constants[value].array))
                case "value":
                    memory.append(_read_array(*value))
                case _:
                    raise ValueError(kind)
        packed: list[PackedCopy | Array] = []
        for index, fields_of in entry["packed"]:
            kind, value = entry["bound"][index]
            layout = PackedLayout(*map(_tuples, fields_of))
            packed.append(copy_of(cells[value], layout) if kind == "cell" else packed_constant(memory[index], layout))
        kept = {name: _tuples(entry[name]) for name in _KEPT}
        spec = CallSpec(
            run=engine.address("run"),
            bound=(*map(address_of, memory), *map(memory_address, packed)),
            recycle=options.recycle,
            keepalive=(engine, memory, packed),
            copies=tuple([copy for copy in packed if isinstance(copy, PackedCopy)]),
            **kept,
        )
        return StoredPlan(spec, engine, make)
    return None


def write_plan(place: Place | None, plan: Plan, options: Options) -> None:
    """Keep a plan at its place, if it is one that can be kept."""
    if place is None or type(plan) is not NativePlan:
        return
    spec, engine = plan.entry_spec(), plan.engine
    assert spec is not None
    defaults = {field.name: field.default for field in fields(CallSpec)}
    rest = set(defaults).difference(_KEPT, _MADE)
    program = plan.program
    if any(getattr(spec, name) != defaults[name] for name in rest) or len(spec.bound) != len(
        program.bound + program.packed
    ):
        return  # there is more to this call than an entry holds
    if not place.graph.seeds <= mere_seeds(plan.graph):
        return  # somebody may have looked at the value of a seed
    if find_sources() != source_identity():
        return  # somebody is changing the compiler
    bound: list[tuple[str, Any]] = []
    room = _MOST_BYTES
    for node in program.bound:
        form = _refer(node, place.graph)
        if form[0] == "value":
            array = bound_memory(node)
            room -= array.nbytes
            if room < 0:
                return
            form = ("value", _write_array(array))
        bound.append(form)
    packed = [(program.bound.index(p.leaf), astuple(p.layout)) for p in program.packed]
    entry = {name: getattr(spec, name) for name in _KEPT}
    entry |= {"module": engine.key, "pooled": engine.pooled, "bound": bound, "packed": packed}
    write_entry(folder_of(options), place.name, json.dumps(entry).encode(), options)


def _refer(node: Node, graph: GraphKey) -> tuple[str, Any]:
    """The number of a variable or a constant of the graph; anything else is a value that the passes made."""
    if node.op.name == "variable":
        return "cell", graph.cells[node.attrs["cell"]]
    if node.op.name == "constant" and node.attrs["value"] in graph.constants:
        return "constant", graph.constants[node.attrs["value"]]
    return "value", None


def _write_array(array: Array) -> tuple[str, tuple[int, ...], str]:
    return array.dtype.name, array.shape, base64.b64encode(array.tobytes()).decode()


def _read_array(dtype: str, shape: list[int], data: str) -> Array:
    array = np.frombuffer(base64.b64decode(data), NUMPY_DTYPE[dtype]).reshape(shape)
    return plain_array(array.copy())


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@lru_cache(maxsize=1)
def source_identity() -> str:
    """A digest of which files the compiler consists of: their names, sizes and times; "" where that can not be told."""
    return find_sources()


def find_sources() -> str:
    """`source_identity` of this moment; "" too where a file was changed since this process began to load them."""
    found: list[tuple[str, str, int, int]] = []
    now = time.time_ns()
    for name in _SOURCES:
        spec = importlib.util.find_spec(f"graphkb.{name}")
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            try:
                with os.scandir(folder) as files:
                    for file in files:
                        if file.name.endswith((".py", ".pyc", ".so")):
                            status = file.stat()
                            found.append((name, file.name, status.st_size, status.st_mtime_ns))
            except OSError:
                return ""
    if {name for name, *_ in found} != set(_SOURCES) or any(LOADED * 1e9 < when <= now for *_, when in found):
        return ""
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


__all__ = ["Place", "find_place", "read_plan", "source_identity", "write_plan"]
