"""All named workloads, by theme; a new one goes into the WORKLOADS of its theme and nowhere else."""

from __future__ import annotations

from benchmarks.workloads import (
    calls,
    chains,
    convolution,
    dense,
    elementwise,
    models,
    moves,
    networks,
    optimizers,
    processes,
    recurrent,
    reductions,
    row_gradients,
)
from benchmarks.workloads.base import Workload

THEMES: dict[str, tuple[Workload, ...]] = {
    "calls": calls.WORKLOADS,
    "elementwise": elementwise.WORKLOADS,
    "reductions": reductions.WORKLOADS,
    "row_gradients": row_gradients.WORKLOADS,
    "moves": moves.WORKLOADS,
    "dense": dense.WORKLOADS,
    "convolution": convolution.WORKLOADS,
    "networks": networks.WORKLOADS,
    "recurrent": recurrent.WORKLOADS,
    "models": models.WORKLOADS,
    "optimizers": optimizers.WORKLOADS,
    "chains": chains.WORKLOADS,
    "processes": processes.WORKLOADS,
}

WORKLOADS: dict[str, Workload] = {w.name: w for theme in THEMES.values() for w in theme}


def select(names: list[str]) -> list[Workload]:
    """The workloads of some names or themes, all of them if there are none.

    Raises ValueError for a name that is neither, and lists those that are.
    """
    chosen: dict[str, Workload] = {}
    for name in names or list(THEMES):
        if name in THEMES:
            chosen.update((w.name, w) for w in THEMES[name])
        elif name in WORKLOADS:
            chosen[name] = WORKLOADS[name]
        else:
            known = f"themes: {', '.join(THEMES)}; workloads: {', '.join(WORKLOADS)}"
            raise ValueError(f"no workload {name!r}; {known}")
    return list(chosen.values())
