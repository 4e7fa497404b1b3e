"""The contracts of ops that look at values: checked integers, printing."""

from __future__ import annotations

from collections.abc import Iterator

from contracts import Case, Contract, Rng, sample

from graphkb.ir.types import DTYPES, INTEGERS


def _bounded(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in ((), (0,), (7,), (3, 5)):
        yield Case((sample(dtype, shape, rng),), {"what": "x", "low": -(2**63), "high": 2**64})


def _printed(dtype: str, rng: Rng) -> Iterator[Case]:
    for shape in ((), (3,), (2, 3)):
        yield Case((sample(dtype, shape, rng),), {"message": "x"})


VALUES = (
    Contract("print", _printed, lambda x, message: x, DTYPES, 0, smooth=(0,)),
    Contract("bounded", _bounded, lambda x, **attrs: x, INTEGERS),
)
