"""Element-wise ops: arithmetic, comparison, logic and the transcendental functions, with NumPy broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphkb.ir.dims import Shape, broadcast_dim, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import OPERATORS, Node, make
from graphkb.ir.op import Op, Vjp, define, not_differentiable
from graphkb.ir.types import BOOL, DTYPES, FLOATS, NUMBERS, NUMPY_DTYPE, TensorType
from graphkb.ops.leaf import constant


# ---------------------------------------------------------------------------------------------- inference
def broadcast_shapes(name: str, *shapes: Shape) -> Shape:
    """The NumPy broadcast of shapes; ShapeError naming the operation and the axis."""
    result = shapes[0]
    for shape in shapes[1:]:
        if shape == result or not shape:
            continue
        ndim = max(len(result), len(shape))
        a = (1,) * (ndim - len(result)) + result
        b = (1,) * (ndim - len(shape)) + shape
        dims = []
        for axis, (m, n) in enumerate(zip(a, b)):
            dim = broadcast_dim(m, n)
            if dim is None:
                raise ShapeError(
                    f"{name}: shapes {' and '.join(map(show_shape, shapes))} do not broadcast: "
                    f"axis {axis} has {m} and {n}"
                )
            dims.append(dim)
        result = tuple(dims)
    return result


def _check_dtypes(name: str, types: tuple[TensorType, ...], allowed: tuple[str, ...]) -> None:
    first = types[0].dtype
    for type in types:
        if type.dtype != first:
            raise DTypeError(f"{name}: the operands must have one dtype, not {' and '.join(t.dtype for t in types)}")
    if first not in allowed:
        raise DTypeError(f"{name}: {first} is not allowed, expected one of {', '.join(allowed)}")


def _same(name: str, allowed: tuple[str, ...]) -> Callable[..., TensorType]:
    """All operands and the result share one dtype."""

    def infer(*types: TensorType) -> TensorType:
        _check_dtypes(name, types, allowed)
        first = types[0]
        if len(types) == 1 or all(t.shape == first.shape for t in types[1:]):
            return first
        return TensorType(first.dtype, broadcast_shapes(name, *[t.shape for t in types]))

    return infer


def _to_bool(name: str, allowed: tuple[str, ...]) -> Callable[..., TensorType]:
    """All operands share one dtype; the result is bool."""

    def infer(*types: TensorType) -> TensorType:
        _check_dtypes(name, types, allowed)
        return TensorType("bool", broadcast_shapes(name, *[t.shape for t in types]))

    return infer


# ---------------------------------------------------------------------------------------------- definitions
def unbroadcast(g: Node, x: Node) -> Node:
    """The gradient summed over the axes along which `x` was broadcast."""
    if g.type.shape == x.type.shape:
        return g
    return make(UNBROADCAST, (g, x))


def _pairwise(vjp: Callable[..., tuple[Node | None, ...]]) -> Vjp:
    """Sum each gradient back to its operand's shape."""

    def wrapped(g: Node, y: Node, *inputs: Node) -> tuple[Node | None, ...]:
        return tuple(None if d is None else unbroadcast(d, x) for d, x in zip(vjp(g, y, *inputs), inputs))

    return wrapped


def _unary(
    name: str, numpy: Callable[..., Any], vjp: Vjp | None, allowed: tuple[str, ...] = FLOATS, cost: int = 10
) -> Op:
    return define(name, kind="elementwise", infer=_same(name, allowed), numpy=numpy, vjp=vjp, cost=cost)


def _binary(
    name: str,
    numpy: Callable[..., Any],
    vjp: Vjp,
    allowed: tuple[str, ...] = NUMBERS,
    cost: int = 1,
    commutative: bool = False,
) -> Op:
    return define(
        name,
        kind="elementwise",
        infer=_same(name, allowed),
        numpy=numpy,
        vjp=vjp if vjp is not_differentiable else _pairwise(vjp),
        cost=cost,
        commutative=commutative,
    )


def _compare(name: str, numpy: Callable[..., Any], commutative: bool = False) -> Op:
    return define(
        name,
        kind="elementwise",
        infer=_to_bool(name, DTYPES),
        numpy=numpy,
        vjp=not_differentiable,
        commutative=commutative,
    )


def _keep_dtype(function: Callable[..., Any]) -> Callable[..., Array]:
    """NumPy's function with its result in the first operand's dtype (NumPy widens small integers in places)."""

    def evaluate(x: Array, *rest: Array) -> Array:
        result: Array = np.asarray(function(x, *rest))
        return result if result.dtype == x.dtype else result.astype(x.dtype)

    return evaluate


def _in_float32(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A formula of several steps that is rounded to float16 once, at its end."""

    def evaluate(x: Array) -> Array:
        return np.asarray(function(x.astype(np.float32) if x.dtype == np.float16 else x)).astype(x.dtype, copy=False)

    return evaluate


def accumulate(reduction: Callable[..., Any], x: Array, **options: Any) -> Array:
    """A NumPy sum or product in the operand's dtype; float16 is accumulated in float32 and rounded once."""
    wide = np.dtype(np.float32) if x.dtype == np.float16 else x.dtype
    return np.asarray(reduction(x, dtype=wide, **options)).astype(x.dtype, copy=False)


def numpy_sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow: exp is taken of -|x| only."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e)))


def numpy_softplus(x: Array) -> Array:
    """log(1 + exp(x)) without overflow."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def _numpy_pow(x: Array, y: Array) -> Array:
    """x ** y; integers to negative powers truncate toward zero (0 to a negative power is 0), where NumPy refuses."""
    if x.dtype.kind == "i" and np.any(y < 0):
        with np.errstate(all="ignore"):
            whole = np.power(x, np.maximum(y, 0))
            inverse = np.where(np.abs(x) == 1, np.where(y % 2 == 0, 1, x), 0)
        return np.asarray(np.where(y < 0, inverse, whole), x.dtype)
    if x.dtype.kind == "f" and np.any(y == 0.5):
        # One exponent for many numbers makes NumPy take roots, which are NaN for -inf and -0.0 for -0.0.
        x = np.where((y == 0.5) & ((x == 0) | np.isinf(x)), np.abs(x), x)
    return np.asarray(np.power(x, y))


def _pow_vjp(g: Node, y: Node, x: Node, p: Node) -> tuple[Node | None, ...]:
    """d x**p = p x**(p-1) dx + x**p log(x) dp; the logarithm counts as 0 where x <= 0."""
    positive = greater(x, 0)
    log_x = select(positive, log(select(positive, x, 1)), 0)
    # At x = p = 0 the slope is 0: the exponent is masked, since 0 * 0**-1 would be NaN, here and in later derivatives.
    origin = make(and_, (equal(x, 0), equal(p, 0)))
    return g * (p * power(x, select(origin, 1, p) - 1)), g * y * log_x


add = _binary("add", np.add, lambda g, y, a, b: (g, g), commutative=True)
sub = _binary("sub", np.subtract, lambda g, y, a, b: (g, -g))
mul = _binary("mul", np.multiply, lambda g, y, a, b: (g * b, g * a), commutative=True)
div = _binary("div", _keep_dtype(np.true_divide), lambda g, y, a, b: (g / b, -g * y / b), FLOATS, cost=4)
# d floor(a / b) = 0 and d (a - b floor(a / b)) = da - floor(a / b) db
floordiv = _binary("floordiv", np.floor_divide, not_differentiable, cost=8)
mod = _binary("mod", np.remainder, lambda g, y, a, b: (g, -g * make(floordiv, (a, b))), cost=8)
pow_ = _binary("pow", _numpy_pow, _pow_vjp, cost=40)
atan2 = _binary("atan2", np.arctan2, lambda g, z, y, x: (g * x / (x * x + y * y), -g * y / (x * x + y * y)), FLOATS, 30)
# Ties: the whole gradient goes to the first operand.
max_ = _binary("maximum", np.maximum, lambda g, y, a, b: _choose(greater_equal(a, b), g), DTYPES, commutative=True)
min_ = _binary("minimum", np.minimum, lambda g, y, a, b: _choose(less_equal(a, b), g), DTYPES, commutative=True)

eq = _compare("equal", np.equal, commutative=True)
ne = _compare("not_equal", np.not_equal, commutative=True)
lt = _compare("less", np.less)
le = _compare("less_equal", np.less_equal)
gt = _compare("greater", np.greater)
ge = _compare("greater_equal", np.greater_equal)

and_ = _binary("logical_and", np.logical_and, not_differentiable, BOOL, commutative=True)
or_ = _binary("logical_or", np.logical_or, not_differentiable, BOOL, commutative=True)
xor_ = _binary("logical_xor", np.logical_xor, not_differentiable, BOOL, commutative=True)
not_ = _unary("logical_not", np.logical_not, not_differentiable, BOOL, cost=1)

neg_ = _unary("neg", np.negative, lambda g, y, x: (-g,), NUMBERS, cost=1)
abs_ = _unary("abs", np.abs, lambda g, y, x: (g * sign(x),), NUMBERS, cost=1)
# As in TensorFlow the slope of sign is 0, but round, floor, ceil and trunc are not connected.
sign_ = _unary("sign", np.sign, lambda g, y, x: (broadcast_like(const_like(0, x), x),), NUMBERS, cost=2)
round_ = _unary("round", np.rint, not_differentiable, FLOATS, cost=1)
floor_ = _unary("floor", np.floor, not_differentiable, FLOATS, cost=1)
ceil_ = _unary("ceil", np.ceil, not_differentiable, FLOATS, cost=1)
trunc_ = _unary("trunc", np.trunc, not_differentiable, FLOATS, cost=1)
square_ = _unary("square", np.square, lambda g, y, x: (g * (x * 2),), NUMBERS, cost=1)
reciprocal_ = _unary("reciprocal", _keep_dtype(lambda x: 1 / x), lambda g, y, x: (-g * y * y,), FLOATS, cost=4)
sqrt_ = _unary("sqrt", np.sqrt, lambda g, y, x: (g * 0.5 / y,), cost=6)
rsqrt_ = _unary("rsqrt", _in_float32(lambda x: 1 / np.sqrt(x)), lambda g, y, x: (g * -0.5 * y / x,), cost=8)
exp_ = _unary("exp", np.exp, lambda g, y, x: (g * y,))
exp2_ = _unary("exp2", np.exp2, lambda g, y, x: (g * y * math.log(2),))
expm1_ = _unary("expm1", np.expm1, lambda g, y, x: (g * exp(x),), cost=12)  # y + 1 would cancel at y = -1
log_ = _unary("log", np.log, lambda g, y, x: (g / x,))
log2_ = _unary("log2", np.log2, lambda g, y, x: (g / (x * math.log(2)),))
log10_ = _unary("log10", np.log10, lambda g, y, x: (g / (x * math.log(10)),))
log1p_ = _unary("log1p", np.log1p, lambda g, y, x: (g / (x + 1),), cost=12)
sin_ = _unary("sin", np.sin, lambda g, y, x: (g * cos(x),), cost=15)
cos_ = _unary("cos", np.cos, lambda g, y, x: (-g * sin(x),), cost=15)
tan_ = _unary("tan", np.tan, lambda g, y, x: (g * (1 + y * y),), cost=20)
# (1 - x) (1 + x) keeps the digits that 1 - x^2 loses near +-1; cosh(y) and sinh(y) do not overflow as x^2 does.
asin_ = _unary("asin", np.arcsin, lambda g, y, x: (g * rsqrt((1 - x) * (1 + x)),), cost=15)
acos_ = _unary("acos", np.arccos, lambda g, y, x: (-g * rsqrt((1 - x) * (1 + x)),), cost=15)
atan_ = _unary("atan", np.arctan, lambda g, y, x: (g / (1 + x * x),), cost=15)
sinh_ = _unary("sinh", np.sinh, lambda g, y, x: (g * cosh(x),), cost=15)
cosh_ = _unary("cosh", np.cosh, lambda g, y, x: (g * sinh(x),), cost=15)
tanh_ = _unary("tanh", np.tanh, lambda g, y, x: (g * (1 - y * y),), cost=12)  # d tanh = 1 - tanh^2
asinh_ = _unary("asinh", np.arcsinh, lambda g, y, x: (g / cosh(y),), cost=20)  # cosh(asinh(x)) = sqrt(x^2 + 1)
acosh_ = _unary("acosh", np.arccosh, lambda g, y, x: (g / sinh(y),), cost=20)  # sinh(acosh(x)) = sqrt(x^2 - 1)
atanh_ = _unary("atanh", np.arctanh, lambda g, y, x: (g / ((1 - x) * (1 + x)),), cost=20)
sigmoid_ = _unary("sigmoid", _in_float32(numpy_sigmoid), lambda g, y, x: (g * (y * (1 - y)),), cost=12)
softplus_ = _unary("softplus", _in_float32(numpy_softplus), lambda g, y, x: (g * sigmoid(x),), cost=22)
erf_ = _unary("erf", _keep_dtype(_erf), lambda g, y, x: (g * exp(-x * x) * (2 / math.sqrt(math.pi)),), cost=15)
erfc_ = _unary("erfc", _keep_dtype(_erfc), lambda g, y, x: (g * exp(-x * x) * (-2 / math.sqrt(math.pi)),), cost=20)
# The gradient at 0 is 0, which max(x, 0) would not give.
relu_ = _unary(
    "relu",
    lambda x: np.maximum(x, x.dtype.type(0)),
    lambda g, y, x: (select(greater(y, 0), g, const_like(0, g)),),
    NUMBERS,
    1,
)


def _to_bool_unary(name: str, numpy: Callable[..., Any]) -> Op:
    return define(name, kind="elementwise", infer=_to_bool(name, FLOATS), numpy=numpy, vjp=not_differentiable)


isnan_ = _to_bool_unary("isnan", np.isnan)
isinf_ = _to_bool_unary("isinf", np.isinf)
isfinite_ = _to_bool_unary("isfinite", np.isfinite)


def _infer_select(condition: TensorType, a: TensorType, b: TensorType) -> TensorType:
    if condition.dtype != "bool":
        raise DTypeError(f"select: the condition must be bool, not {condition.dtype}")
    _check_dtypes("select", (a, b), DTYPES)
    return TensorType(a.dtype, broadcast_shapes("select", condition.shape, a.shape, b.shape))


def _select_vjp(g: Node, y: Node, condition: Node, a: Node, b: Node) -> tuple[Node | None, ...]:
    zero = const_like(0, g)
    left, right = make(SELECT, (condition, g, zero)), make(SELECT, (condition, zero, g))
    return None, unbroadcast(left, a), unbroadcast(right, b)


SELECT = define(
    "select",
    kind="elementwise",
    infer=_infer_select,
    numpy=lambda c, a, b: np.where(c, a, b),
    vjp=_select_vjp,
    doc="condition ? a : b, element by element.",
)


def _cast_numpy(x: Array, dtype: str) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(x).astype(NUMPY_DTYPE[dtype])


CAST = define(
    "cast",
    kind="elementwise",
    params=("dtype",),
    infer=lambda x, dtype: x.with_dtype(dtype),
    numpy=_cast_numpy,
    vjp=lambda g, y, x, dtype: (cast(g, x.dtype) if x.dtype in FLOATS and dtype in FLOATS else None,),
    doc="Conversion as NumPy's astype does it.",
)


def _numpy_unbroadcast(g: Array, x: Array) -> Array:
    extra = g.ndim - x.ndim
    axes = tuple(range(extra)) + tuple(i + extra for i, n in enumerate(x.shape) if n == 1 and g.shape[i + extra] != 1)
    return accumulate(np.sum, g, axis=axes).reshape(x.shape)


def _infer_unbroadcast(g: TensorType, x: TensorType) -> TensorType:
    if g.dtype not in NUMBERS:
        raise DTypeError(f"unbroadcast: {g.dtype} is not allowed, expected a number type")
    broadcast_shapes("unbroadcast", g.shape, x.shape)
    return TensorType(g.dtype, x.shape)


# The shape alone of the second input matters. Once the sizes are bound it becomes a plain sum and a reshape.
UNBROADCAST = define(
    "unbroadcast",
    kind="reduce",
    infer=_infer_unbroadcast,
    numpy=_numpy_unbroadcast,
    vjp=lambda g, y, h, x: (broadcast_like(g, h), None),
    doc="The sum of the first operand over the axes that broadcasting the second one to it would repeat.",
)
BROADCAST_LIKE = define(
    "broadcast_like",
    kind="view",
    infer=lambda x, like: TensorType(x.dtype, broadcast_shapes("broadcast_like", x.shape, like.shape)),
    numpy=lambda x, like: np.broadcast_to(x, np.broadcast_shapes(x.shape, like.shape)),
    vjp=lambda g, y, x, like: (unbroadcast(g, x), None),
    doc="The first operand broadcast with the shape of the second, whose values do not matter.",
)


def broadcast_like(x: Node, like: Node) -> Node:
    """`x` repeated to the shape that it and `like` broadcast to."""
    return x if x.type.shape == like.type.shape else make(BROADCAST_LIKE, (x, like))


# ---------------------------------------------------------------------------------------------- builders
Operand = Node | int | float | bool


def const_like(value: float, like: Node) -> Node:
    """A scalar constant in the dtype of a node; DTypeError where the dtype can not hold it."""
    if like.dtype not in FLOATS:
        check_integer(value, like.dtype)
    return constant(value, like.dtype)


def check_integer(value: float, dtype: str) -> None:
    """DTypeError unless an integer or bool dtype holds the number exactly."""
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not low <= value <= high or value != int(value):
        raise DTypeError(f"the number {value!r} can not be a {dtype}: cast the tensor beside it, or the number, first")


def _operands(a: Operand, b: Operand) -> tuple[Node, Node]:
    """Give a Python number the dtype of the node beside it."""
    if not isinstance(a, Node):
        assert isinstance(b, Node)
        return const_like(a, b), b
    return a, b if isinstance(b, Node) else const_like(b, a)


def _builder2(op: Op) -> Callable[[Operand, Operand], Node]:
    def build(a: Operand, b: Operand) -> Node:
        return make(op, _operands(a, b))

    return build


def _builder1(op: Op) -> Callable[[Node], Node]:
    def build(x: Node) -> Node:
        return make(op, (x,))

    return build


def _choose(first: Node, g: Node) -> tuple[Node, Node]:
    zero = const_like(0, g)
    return make(SELECT, (first, g, zero)), make(SELECT, (first, zero, g))


def select(condition: Node, a: Operand, b: Operand) -> Node:
    """condition ? a : b with broadcasting; the condition is bool, a number takes the other branch's dtype."""
    return make(SELECT, (condition, *_operands(a, b)))


def cast(x: Node, dtype: str) -> Node:
    """The node in another dtype; the node itself if it has that dtype."""
    return x if x.dtype == dtype else make(CAST, (x,), {"dtype": dtype})


Binary = Callable[[Operand, Operand], Node]
Unary = Callable[[Node], Node]
power: Binary = _builder2(pow_)
maximum: Binary = _builder2(max_)
minimum: Binary = _builder2(min_)
equal: Binary = _builder2(eq)
not_equal: Binary = _builder2(ne)
less: Binary = _builder2(lt)
less_equal: Binary = _builder2(le)
greater: Binary = _builder2(gt)
greater_equal: Binary = _builder2(ge)
sign: Unary = _builder1(sign_)
square: Unary = _builder1(square_)
sqrt: Unary = _builder1(sqrt_)
rsqrt: Unary = _builder1(rsqrt_)
reciprocal: Unary = _builder1(reciprocal_)
exp: Unary = _builder1(exp_)
log: Unary = _builder1(log_)
log1p: Unary = _builder1(log1p_)
sin: Unary = _builder1(sin_)
cos: Unary = _builder1(cos_)
sinh: Unary = _builder1(sinh_)
cosh: Unary = _builder1(cosh_)
tanh: Unary = _builder1(tanh_)
sigmoid: Unary = _builder1(sigmoid_)
softplus: Unary = _builder1(softplus_)
relu: Unary = _builder1(relu_)


STOP_GRADIENT = define(
    "stop_gradient",
    kind="marker",
    infer=lambda x: x,
    numpy=lambda x: x,
    vjp=not_differentiable,
    doc="The operand, through which no gradient flows.",
)


def stop_gradient(x: Node) -> Node:
    """The node as a constant in the eyes of differentiation."""
    return make(STOP_GRADIENT, (x,))


OPERATORS["add"] = _builder2(add)
OPERATORS["sub"] = _builder2(sub)
OPERATORS["mul"] = _builder2(mul)
OPERATORS["div"] = _builder2(div)
OPERATORS["neg"] = lambda x, _: make(neg_, (x,))
