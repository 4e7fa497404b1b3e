"""numexpr as a contestant: expressions are strings over the names of the inputs.

A pair (string, constants) gives names to float32 constants: a literal such as 0.5 would make everything float64.
"""

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

        text, constants = expression if isinstance(expression, tuple) else (expression, {})
        arrays = {**inputs, **constants}
        if (problem := numexpr.validate(text, local_dict=arrays)) is not None:
            raise problem
        return Contestant("evaluate(e, local_dict=d)", {"evaluate": numexpr.evaluate, "e": text, "d": arrays})
