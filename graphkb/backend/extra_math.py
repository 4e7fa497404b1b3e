"""Element-wise functions that Keras' API lacks: the rest of what NumPy and SciPy users expect, under their names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphkb.backend.promotion import float_node
from graphkb.backend.tensors import Tensor
from graphkb.ir.node import make
from graphkb.ir.op import find_op

Function = Callable[[Any], Tensor]

_DOC = """{what}, element by element.

    Args:
        x: numbers of any shape; integers and bools become floatx.

    Returns:
        A tensor of the same shape{result}.

    >>> from graphkb import backend as K
    >>> round(float(K.eval(K.{name}(K.variable({argument})))), 4)
    {value}
    """


def _function(
    name: str, what: str, argument: float, value: float, result: str = " and dtype", op: str = ""
) -> Function:
    record = find_op(op or name)

    def function(x: Any) -> Tensor:
        return Tensor(make(record, (float_node(x),)))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = _DOC.format(what=what, name=name, argument=argument, value=value, result=result)
    return function


erf = _function("erf", "The error function, 2/sqrt(pi) times the integral of exp(-t*t) from 0 to x", 0.5, 0.5205)
erfc = _function("erfc", "1 - erf(x), accurate for large x", 0.5, 0.4795)
exp2 = _function("exp2", "2 to the power x", 3.0, 8.0)
expm1 = _function("expm1", "exp(x) - 1, accurate near 0", 1.0, 1.7183)
log1p = _function("log1p", "log(1 + x), accurate near 0", 1.0, 0.6931)
log2 = _function("log2", "The logarithm to base 2", 8.0, 3.0)
log10 = _function("log10", "The logarithm to base 10", 100.0, 2.0)
rsqrt = _function("rsqrt", "1 / sqrt(x)", 4.0, 0.5)
reciprocal = _function("reciprocal", "1 / x", 4.0, 0.25)
tan = _function("tan", "The tangent", 1.0, 1.5574)
asin = _function("asin", "The inverse sine, in radians", 1.0, 1.5708)
acos = _function("acos", "The inverse cosine, in radians", 0.0, 1.5708)
atan = _function("atan", "The inverse tangent, in radians", 1.0, 0.7854)
sinh = _function("sinh", "The hyperbolic sine", 1.0, 1.1752)
cosh = _function("cosh", "The hyperbolic cosine", 1.0, 1.5431)
asinh = _function("asinh", "The inverse hyperbolic sine", 1.0, 0.8814)
acosh = _function("acosh", "The inverse hyperbolic cosine", 2.0, 1.317)
atanh = _function("atanh", "The inverse hyperbolic tangent", 0.5, 0.5493)
floor = _function("floor", "The largest integer not above x", -1.5, -2.0)
ceil = _function("ceil", "The smallest integer not below x", -1.5, -1.0)
trunc = _function("trunc", "The integer part", -1.5, -1.0)
isnan = _function("isnan", "Whether x is not a number", 1.0, 0.0, ", of dtype bool")
isinf = _function("isinf", "Whether x is infinite", 1.0, 0.0, ", of dtype bool")
isfinite = _function("isfinite", "Whether x is neither infinite nor NaN", 1.0, 1.0, ", of dtype bool")

__all__ = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "ceil",
    "cosh",
    "erf",
    "erfc",
    "exp2",
    "expm1",
    "floor",
    "isfinite",
    "isinf",
    "isnan",
    "log1p",
    "log2",
    "log10",
    "reciprocal",
    "rsqrt",
    "sinh",
    "tan",
    "trunc",
]
