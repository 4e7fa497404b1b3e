"""Sizes that keep changing: which ones do, and what code for any of their values serves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from graphkb.ir.dims import Symbol
from graphkb.ir.errors import InputError
from graphkb.ir.graph import Graph
from graphkb.ir.record import record
from graphkb.passes.open_sizes import open_sizes
from graphkb.passes.size_guards import SizeGuards
from graphkb.runtime.inputs import Parameters, Shapes

OpenShapes = tuple[tuple[int | None, ...], ...]
"""The shapes of all inputs, with None for sizes that are open."""


@dataclass
class SizeHistory:
    """The values that each unknown size has had in the specializations of a function.

    Attributes: `most`, the number of values from which on a size counts as changing; 0 for never. `refused` tells why
    a size can not be open, whatever its value.
    """

    most: int
    seen: dict[Symbol, set[int]] = field(default_factory=dict)
    refused: dict[Symbol, str] = field(default_factory=dict)

    def note(self, sizes: Mapping[Symbol, int]) -> frozenset[Symbol]:
        """Remember the sizes of a call that needs new code; which of those that may be open keep changing."""
        if not self.most:
            return frozenset()
        for symbol, size in sizes.items():
            values = self.seen.setdefault(symbol, set())
            if len(values) < self.most:
                values.add(size)
        changing = [symbol for symbol, values in self.seen.items() if len(values) >= self.most]
        return frozenset(changing).difference(self.refused)


@record
class OpenProgram:
    """A function's graph with some sizes open, and what must hold of them.

    Attributes: `first`, the values of the open sizes that it was made for.
    """

    graph: Graph
    guards: SizeGuards
    parameters: Parameters
    first: Mapping[Symbol, int]

    @property
    def names(self) -> str:
        """The open sizes, for texts."""
        return ", ".join(sorted(symbol.name for symbol in self.first))

    @property
    def values(self) -> str:
        """The values that it was made for, for texts."""
        return ", ".join(sorted(f"{symbol.name} = {size}" for symbol, size in self.first.items()))

    def describe(self) -> str:
        """The inputs with their shapes."""
        return self.parameters.describe(self.shapes)

    @property
    def shapes(self) -> OpenShapes:
        """The inputs' shapes, None for what is open."""
        return tuple([tuple([d if isinstance(d, int) else None for d in node.shape]) for node in self.graph.inputs])

    def sizes(self, shapes: Shapes) -> dict[Symbol, int] | None:
        """The open sizes when the inputs have these shapes; None where the program does not serve them."""
        try:
            found = self.parameters.bind(shapes)
        except InputError:
            return None
        return found if self.guards.hold(found) else None


def open_program(graph: Graph, sizes: Mapping[Symbol, int], chosen: Collection[Symbol]) -> OpenProgram:
    """The program with the chosen sizes open and the others bound.

    Raises:
        OpenSizeError: they can not be open.
        ValueError: the program is not valid for these sizes.
    """
    opened, guards, first = open_sizes(graph, sizes, chosen)
    return OpenProgram(opened, guards, Parameters(opened.inputs, graph.name), first)


__all__ = ["OpenProgram", "OpenShapes", "SizeHistory", "open_program"]
