"""The pass that applies identities: algebra, logic, views, reductions, dot products and convolutions."""

from __future__ import annotations

from typing import ClassVar

from graphkb.ir.graph import Graph
from graphkb.ir.record import record
from graphkb.passes.fold_constants import FOLD
from graphkb.passes.rewrite import Rules, rewrite_graph
from graphkb.passes.rules_algebra import ALGEBRA
from graphkb.passes.rules_conv import CONVS
from graphkb.passes.rules_dot import DOTS
from graphkb.passes.rules_fastmath import FASTMATH
from graphkb.passes.rules_logic import LOGIC
from graphkb.passes.rules_reduce import REDUCE
from graphkb.passes.rules_views import VIEWS

# Folding comes first, so that every other rule may take its constants to be on one side only.
SIMPLIFY: Rules = (*FOLD, *VIEWS, *ALGEBRA, *LOGIC, *REDUCE, *DOTS, *CONVS)


@record
class Simplify:
    """Rewrite to normal form by identities that hold for every value, NaN, infinities and signed zeros included.

    Args:
        fastmath: also apply the rules of `rules_fastmath`, which may change rounding and take values to be finite.
    """

    fastmath: bool = False
    name: ClassVar[str] = "simplify"

    def apply(self, graph: Graph) -> Graph:
        return rewrite_graph(graph, SIMPLIFY + FASTMATH if self.fastmath else SIMPLIFY, share=True)
