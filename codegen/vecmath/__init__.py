"""Elementary functions as inline vector instructions, within stated error bounds.

`VECTOR_MATH[name](b, x)` writes the instructions for x, a float of any number of lanes, and returns the result, with
the special values of NumPy. float16 is computed in float32 and rounded. Nothing is called, so the code needs no
library.
"""

from collections.abc import Callable

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.vecmath import (
    error_function,
    exponential,
    inverse_trigonometry,
    logarithm,
    power,
    trigonometry,
)
from graphkb.codegen.vecmath.expression import Expr, in_registers
from graphkb.codegen.vecmath.half import HALF

_FORMULAS: dict[str, Callable[..., Expr]] = {
    "exp": exponential.exp,
    "exp2": exponential.exp2,
    "expm1": exponential.expm1,
    "sigmoid": exponential.sigmoid,
    "tanh": exponential.tanh,
    "sinh": exponential.sinh,
    "cosh": exponential.cosh,
    "log": logarithm.log,
    "log2": logarithm.log2,
    "log10": logarithm.log10,
    "log1p": logarithm.log1p,
    "softplus": logarithm.softplus,
    "asinh": logarithm.asinh,
    "acosh": logarithm.acosh,
    "atanh": logarithm.atanh,
    "sin": trigonometry.sin,
    "cos": trigonometry.cos,
    "tan": trigonometry.tan,
    "asin": inverse_trigonometry.asin,
    "acos": inverse_trigonometry.acos,
    "atan": inverse_trigonometry.atan,
    "atan2": inverse_trigonometry.atan2,
    "erf": error_function.erf,
    "erfc": error_function.erfc,
    "pow": power.power,
    "rsqrt": power.rsqrt,
    "cbrt": power.cbrt,
}


def _emitter(formula: Callable[..., Expr]) -> Callable[..., Value]:
    def emit(b: Builder, *args: Value) -> Value:
        dtype = args[0].dtype
        if dtype not in ("float16", "float32", "float64"):
            raise TypeError(f"{formula.__name__}: expected a float, got {dtype}")
        chosen = formula
        if dtype == "float16":
            args = tuple([b.cast(a, "float32") for a in args])
            if b.target.has_fma:
                chosen = HALF.get(formula.__name__, formula)

        def write(*operands: Value) -> Value:
            return chosen(*(Expr(b, a) for a in operands)).value

        fastmath, b.fastmath = b.fastmath, False  # error-free transformations need every rounding
        try:
            result = in_registers(b, args, write) if b.target.is_avx512 else write(*args)
        finally:
            b.fastmath = fastmath
        return b.cast(result, "float16") if dtype == "float16" else result

    emit.__name__ = formula.__name__
    emit.__doc__ = formula.__doc__
    return emit


VECTOR_MATH: dict[str, Callable[..., Value]] = {name: _emitter(f) for name, f in _FORMULAS.items()}

# The largest error in units in the last place of the exact result, over all arguments and targets, as name, float32
# and float64. In float16 every function is within 0.51: what float32 gives is rounded once more.
_BOUNDS = (
    ("exp", 1.25, 1.25),
    ("exp2", 1.25, 1.25),
    ("expm1", 1.75, 2.0),
    ("sigmoid", 2.5, 2.0),
    ("tanh", 2.5, 2.75),
    ("sinh", 2.0, 2.0),
    ("cosh", 2.0, 2.0),
    ("log", 1.0, 1.25),
    ("log2", 2.5, 2.0),
    ("log10", 2.0, 2.0),
    ("log1p", 1.25, 1.25),
    ("softplus", 2.0, 2.0),
    ("asinh", 2.5, 2.0),
    ("acosh", 2.0, 2.0),
    ("atanh", 1.5, 2.25),
    ("sin", 1.0, 1.0),
    ("cos", 1.0, 1.0),
    ("tan", 2.25, 2.0),
    ("asin", 2.25, 2.0),
    ("acos", 1.5, 1.5),
    ("atan", 2.0, 2.0),
    ("atan2", 2.0, 2.0),
    ("erf", 1.5, 1.5),
    ("erfc", 1.0, 4.0),
    ("pow", 1.5, 1.5),
    ("rsqrt", 1.5, 1.5),
    ("cbrt", 2.0, 1.0),
)
MAX_ULP: dict[tuple[str, str], float] = {
    (name, dtype): bound
    for name, *bounds in _BOUNDS
    for dtype, bound in (*zip(("float32", "float64"), bounds), ("float16", 0.51))
}
