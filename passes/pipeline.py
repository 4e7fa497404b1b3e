"""The pipeline: which passes run, in which order and why, and the observers that look on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

from graphkb.ir.graph import Graph
from graphkb.ir.record import record
from graphkb.ir.verify import verify
from graphkb.passes.chain_kernels import ChainKernels
from graphkb.passes.crop_convolutions import CropConvolutions
from graphkb.passes.eliminate_dead import EliminateDead
from graphkb.passes.fold_constants import FoldConstants
from graphkb.passes.fuse import Fuse
from graphkb.passes.hoist_products import HoistProducts
from graphkb.passes.inline_bodies import InlineBodies
from graphkb.passes.merge_loops import MergeLoops
from graphkb.passes.optimize_bodies import OptimizeBodies
from graphkb.passes.prune_loops import PruneLoops
from graphkb.passes.prune_stop_gradient import PruneStopGradient
from graphkb.passes.share_joins import ShareJoins
from graphkb.passes.simplify import Simplify
from graphkb.passes.stabilize import Stabilize
from graphkb.passes.verify import Verify


class Pass(Protocol):
    """A step from a graph to one of the same meaning: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str: ...

    def apply(self, graph: Graph) -> Graph: ...


class Observer(Protocol):
    """What `optimize` calls after each pass: dumping, timing and checking hang here, not in the passes."""

    def __call__(self, step: Pass, before: Graph, after: Graph, seconds: float) -> None: ...


Pipeline = tuple[Pass, ...]


def graph_passes(fastmath: bool = False) -> Pipeline:
    """The passes that hold for unknown sizes as well as for known ones; see `PIPELINE`."""
    inner = (
        PruneStopGradient(),  # gradients are built by now: the markers have done their work and hide patterns
        MergeLoops(),  # before anything rewrites bodies: it takes them by their nodes
        FoldConstants(),  # first, so that the rules below see literal zeros and ones
        InlineBodies(),  # now conditions that are constant show, and the rules see what was written out
        Simplify(fastmath),  # before the formulas are looked at: they are found in normal form only
        CropConvolutions(),  # views of views are one slice by now; what it slices meets the identities below
        Stabilize(fastmath),  # with the identities again, since better formulas open new ones
        ShareJoins(),  # after the rules, which would merge the joins again
        EliminateDead(),  # after the rules, which leave operands behind that lend only their shape
        PruneLoops(),  # all that is not needed is gone from this graph, so that bodies need not make it
    )
    return (
        Verify(),  # a broken graph is the builder's fault, not that of a pass
        *inner,
        OptimizeBodies(inner),  # what comes from outside is settled
        HoistProducts(),  # bodies are as simple as they get: what they still compute alike is worth a look
        PruneLoops(),  # bodies read less by now
        Verify(),  # what code generation relies on
    )


# For graphs of unknown or known sizes. Run it again once the sizes are bound: sizes have become constants by then and
# gradients plain sums.
PIPELINE: Pipeline = graph_passes()

# After PIPELINE, where code is generated; it hides nodes from the rules.
FUSION: Pipeline = (
    Fuse(),
    ChainKernels(),  # it takes kernels as they are
)


def optimize(graph: Graph, pipeline: Sequence[Pass] = PIPELINE, observer: Observer | None = None) -> Graph:
    """The graph after all passes.

    Args:
        graph: any graph; it stays as it is.
        pipeline: passes, in order.
        observer: called with each pass, the graph before and after it and the seconds that it took.

    Raises:
        GraphError: the graph is not well formed; the text shows the node and the line that built it.
    """
    for step in pipeline:
        start = time.perf_counter()
        try:
            after = step.apply(graph)
        except Exception as error:
            error.add_note(f"while running the pass {step.name} on {graph.name}")
            raise
        if observer is not None:
            observer(step, graph, after, time.perf_counter() - start)
        graph = after
    return graph


@record
class VerifyEach:
    """An observer that checks the graph after every pass, so that the pass at fault is named."""

    def __call__(self, step: Pass, before: Graph, after: Graph, seconds: float) -> None:
        try:
            verify(after)
        except ValueError as error:
            error.add_note(f"after the pass {step.name}")
            raise


@record
class Timings:
    """An observer that keeps what each pass cost and did.

    Attributes:
        rows: `(pass, nodes before, nodes after, seconds)` in the order of the passes.
    """

    rows: list[tuple[str, int, int, float]] = field(default_factory=list)

    def __call__(self, step: Pass, before: Graph, after: Graph, seconds: float) -> None:
        self.rows.append((step.name, len(before.nodes), len(after.nodes), seconds))

    def __str__(self) -> str:
        lines = [f"{'pass':<24}{'nodes':>10}{'':>10}{'ms':>10}"]
        lines += [f"{name:<24}{a:>10}{b:>10}{1000 * seconds:>10.2f}" for name, a, b, seconds in self.rows]
        lines.append(f"{'total':<44}{1000 * sum(row[3] for row in self.rows):>10.2f}")
        return "\n".join(lines)


def observe(*observers: Observer) -> Observer:
    """One observer that calls several, in order."""

    def all_of_them(step: Pass, before: Graph, after: Graph, seconds: float) -> None:
        for each in observers:
            each(step, before, after, seconds)

    return all_of_them
