"""numexpr as a contestant: expressions are strings over the names of the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer


class NumExpr(Peer):
    name = dialect = "numexpr"
    modules = ("numexpr",)
    package = "numexpr"

    def setup(self, threads: int) -> None:
        import numexpr

        numexpr.set_num_threads(threads)

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        import numexpr

        arrays = dict(inputs)
        if (problem := numexpr.validate(expression, local_dict=arrays)) is not None:
            raise problem
        return Contestant("evaluate(e, local_dict=d)", {"evaluate": numexpr.evaluate, "e": expression, "d": arrays})
