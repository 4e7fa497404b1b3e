"""Operators on builder values, so that a formula reads as one, and the parts that most formulas share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.codegen.builder import Builder, Value


class Expr:
    """A value with operators. Numbers beside it become constants of its dtype; comparisons give bool masks."""

    __slots__ = ("b", "value")

    def __init__(self, b: Builder, value: Value) -> None:
        self.b = b
        self.value = value

    @property
    def dtype(self) -> str:
        """The dtype of the lanes."""
        return self.value.dtype

    @property
    def lanes(self) -> int:
        """The number of lanes."""
        return self.value.lanes

    def of(self, other: Expr | float | int) -> Value:
        """`other` as a value like this one."""
        return other.value if isinstance(other, Expr) else self.b.const_like(other, self.value)

    def const(self, number: float | int) -> Expr:
        """A constant with this dtype and these lanes."""
        return Expr(self.b, self.b.const_like(number, self.value))

    def _new(self, value: Value) -> Expr:
        return Expr(self.b, value)

    def __add__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.add(self.value, self.of(other)))

    def __radd__(self, other: float | int) -> Expr:
        return self._new(self.b.add(self.of(other), self.value))

    def __sub__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.sub(self.value, self.of(other)))

    def __rsub__(self, other: float | int) -> Expr:
        return self._new(self.b.sub(self.of(other), self.value))

    def __mul__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.mul(self.value, self.of(other)))

    __rmul__ = __mul__

    def __truediv__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.fdiv(self.value, self.of(other)))

    def __rtruediv__(self, other: float | int) -> Expr:
        return self._new(self.b.fdiv(self.of(other), self.value))

    def __neg__(self) -> Expr:
        return self._new(self.b.neg(self.value))

    def __abs__(self) -> Expr:
        return self._new(self.b.abs(self.value))

    def __and__(self, other: Expr | int) -> Expr:
        return self._new(self.b.and_(self.value, self.of(other)))

    def __or__(self, other: Expr | int) -> Expr:
        return self._new(self.b.or_(self.value, self.of(other)))

    def __xor__(self, other: Expr | int) -> Expr:
        return self._new(self.b.xor(self.value, self.of(other)))

    def __invert__(self) -> Expr:
        return self._new(self.b.not_(self.value))

    def __lshift__(self, count: int) -> Expr:
        return self._new(self.b.shl(self.value, count))

    def __rshift__(self, count: int) -> Expr:
        return self._new(self.b.shift_right(self.value, count))

    def __lt__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.compare("lt", self.value, self.of(other)))

    def __le__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.compare("le", self.value, self.of(other)))

    def __gt__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.compare("gt", self.value, self.of(other)))

    def __ge__(self, other: Expr | float | int) -> Expr:
        return self._new(self.b.compare("ge", self.value, self.of(other)))

    def eq(self, other: Expr | float | int) -> Expr:
        """Whether the lanes are equal."""
        return self._new(self.b.compare("eq", self.value, self.of(other)))

    def ne(self, other: Expr | float | int) -> Expr:
        """Whether the lanes differ or are unordered."""
        return self._new(self.b.compare("ne", self.value, self.of(other)))

    def fma(self, factor: Expr | float, addend: Expr | float) -> Expr:
        """self * factor + addend, rounded once where the machine can."""
        return self._new(self.b.fma(self.value, self.of(factor), self.of(addend)))

    def where(self, then: Expr | float | int, otherwise: Expr | float | int) -> Expr:
        """`then` where this mask holds, else `otherwise`; at least one of them is an expression."""
        like = then if isinstance(then, Expr) else otherwise
        assert isinstance(like, Expr)
        return self._new(self.b.select(self.value, like.of(then), like.of(otherwise)))

    def at_most(self, limit: float) -> Expr:
        """The smaller of this and `limit`; NaN stays."""
        return self._new(self.b.fmin_number(self.of(limit), self.value))

    def at_least(self, limit: float) -> Expr:
        """The larger of this and `limit`; NaN stays."""
        return self._new(self.b.fmax_number(self.of(limit), self.value))

    def copysign(self, sign: Expr | float) -> Expr:
        """This magnitude with the sign of `sign`."""
        return self._new(self.b.copysign(self.value, self.of(sign)))

    def sqrt(self) -> Expr:
        """The square root."""
        return self._new(self.b.sqrt(self.value))

    def rint(self) -> Expr:
        """The nearest whole number."""
        return self._new(self.b.rint(self.value))

    def isnan(self) -> Expr:
        """Whether this is not a number."""
        return self._new(self.b.isnan(self.value))

    def bits(self) -> Expr:
        """The bits as a signed integer."""
        return self._new(self.b.bitcast(self.value, "int32" if self.dtype == "float32" else "int64"))

    def as_float(self) -> Expr:
        """The bits as a float."""
        return self._new(self.b.bitcast(self.value, "float32" if self.dtype == "int32" else "float64"))

    def cast(self, dtype: str) -> Expr:
        """The number as another dtype."""
        return self._new(self.b.cast(self.value, dtype))

    def any(self) -> Value:
        """A scalar bool: whether any lane of this mask holds."""
        return self.b.any_lane(self.value)


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """c[0] + c[1] x + c[2] x² + …"""
    total = x.fma(coefficients[-1], coefficients[-2])
    for c in reversed(coefficients[:-2]):
        total = total.fma(x, c)
    return total


def two_sum(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """a + b as the rounded sum and its exact error, for any magnitudes (Knuth)."""
    total = a + b
    moved = total - a
    return total, (a - (total - moved)) + (b - moved)


def fast_two_sum(a: Expr, b: Expr) -> tuple[Expr, Expr]:
    """a + b as the rounded sum and its exact error where |a| >= |b| (Dekker)."""
    total = a + b
    return total, b - (total - a)


def two_product(a: Expr, b: Expr | float) -> tuple[Expr, Expr]:
    """a * b as the rounded product and its exact error."""
    product = a * b
    if a.b.target.has_fma:
        return product, a.fma(b, -product)
    other = b if isinstance(b, Expr) else a.const(b)
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(other)
    error = (a_high * b_high - product) + a_high * b_low + a_low * b_high
    return product, error + a_low * b_low


def _halves(a: Expr) -> tuple[Expr, Expr]:
    """a cut into two parts of half the precision, by masking so that nothing overflows."""
    keep = -(1 << 12) if a.dtype == "float32" else -(1 << 27)
    high = (a.bits() & keep).as_float()
    return high, a - high


def in_registers(b: Builder, args: Sequence[Value], compute: Callable[..., Value]) -> Value:
    """`compute` on native vectors: the arguments are padded up to one, or cut into several parts.

    Instructions that exist only for full registers thereby serve any number of lanes.
    """
    lanes, native = args[0].lanes, b.target.lanes(args[0].dtype)
    if lanes == native:
        return compute(*args)
    if lanes == 1:
        return b.extract(compute(*(b.splat(x, native) for x in args)), 0)
    parts = -(-lanes // native)
    while parts & (parts - 1):
        parts += 1
    done: list[Value] = []
    for k in range(parts):
        picks = [min(i, lanes - 1) for i in range(k * native, (k + 1) * native)]
        done.append(compute(*(b.shuffle(x, None, picks) for x in args)) if picks[0] < lanes - 1 or k == 0 else done[-1])
    while len(done) > 1:
        done = [b.concat(done[i], done[i + 1]) for i in range(0, len(done), 2)]
    return b.shuffle(done[0], None, range(lanes))
