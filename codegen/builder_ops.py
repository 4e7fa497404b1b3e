"""Instructions on numbers: arithmetic, rounding, comparison, selection, lanes and reductions."""

from collections.abc import Callable, Sequence

from graphkb.codegen.builder_casts import Casts
from graphkb.codegen.builder_core import FLOATS, ITEM_SIZES, LLVM_TYPES, UNSIGNED, Value, llvm_type, type_of

_FLOAT_PREDICATES = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}


def mangled(value: Value) -> str:
    """The suffix by which LLVM names the overload of an intrinsic, such as "v16f32"."""
    kind = LLVM_TYPES[value.dtype]
    short = {"float": "f32", "double": "f64", "ptr": "p0"}.get(kind, kind)
    return short if value.lanes == 1 else f"v{value.lanes}{short}"


class Operations(Casts):
    """Arithmetic on values.

    Both operands of an instruction have one dtype and one number of lanes. float16 operands are widened to
    float32 and each result is rounded, as in NumPy.
    """

    # Floating point

    def _float(self, make: Callable[..., Value], *args: Value) -> Value:
        if args[0].dtype != "float16":
            return make(*args)
        return self.cast(make(*(self.cast(a, "float32") for a in args)), "float16")

    def _flags(self) -> str:
        return " reassoc arcp contract" if self.fastmath else ""

    def _binary(self, op: str, a: Value, b: Value) -> Value:
        return self.fresh(f"{op} {type_of(a)} {a.name}, {b.name}", a.dtype, a.lanes)

    def _float_binary(self, op: str, a: Value, b: Value) -> Value:
        return self._float(lambda x, y: self._binary(op + self._flags(), x, y), a, b)

    def _unary_intrinsic(self, name: str, a: Value) -> Value:
        return self._float(lambda x: self.call(f"llvm.{name}.{mangled(x)}", x.dtype, x.lanes, [x]), a)

    def fadd(self, a: Value, b: Value) -> Value:
        """a + b"""
        return self._float_binary("fadd", a, b)

    def fsub(self, a: Value, b: Value) -> Value:
        """a - b"""
        return self._float_binary("fsub", a, b)

    def fmul(self, a: Value, b: Value) -> Value:
        """a * b"""
        return self._float_binary("fmul", a, b)

    def fdiv(self, a: Value, b: Value) -> Value:
        """a / b"""
        return self._float_binary("fdiv", a, b)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once where the machine has the instruction, else twice."""

        def make(x: Value, y: Value, z: Value) -> Value:
            name = "fma" if self.target.has_fma else "fmuladd"
            return self.call(f"llvm.{name}.{mangled(x)}", x.dtype, x.lanes, [x, y, z])

        return self._float(make, a, b, c)

    def fneg(self, a: Value) -> Value:
        """-a, also of zeros and NaN."""
        if a.dtype == "float16":
            return self.bitcast(self.xor(self.bitcast(a, "uint16"), self.const(0x8000, "uint16", a.lanes)), a.dtype)
        return self.fresh(f"fneg {type_of(a)} {a.name}", a.dtype, a.lanes)

    def fabs(self, a: Value) -> Value:
        """|a|"""
        if a.dtype == "float16":
            return self.bitcast(self.and_(self.bitcast(a, "uint16"), self.const(0x7FFF, "uint16", a.lanes)), a.dtype)
        return self._unary_intrinsic("fabs", a)

    def sqrt(self, a: Value) -> Value:
        """The correctly rounded square root; NaN below zero."""
        return self._unary_intrinsic("sqrt", a)

    def floor(self, a: Value) -> Value:
        """The largest whole number not above a."""
        return self._rounding("floor", a)

    def ceil(self, a: Value) -> Value:
        """The smallest whole number not below a."""
        return self._rounding("ceil", a)

    def trunc(self, a: Value) -> Value:
        """a without its fraction."""
        return self._rounding("trunc", a)

    def rint(self, a: Value) -> Value:
        """The nearest whole number, ties to even."""
        return self._rounding("roundeven", a)

    def _rounding(self, name: str, a: Value) -> Value:
        if self.target.cpu != "x86-64" and not self.target.triple.startswith("riscv"):
            return self._unary_intrinsic(name, a)
        return self._float(lambda x: self._rounding_by_addition(name, x), a)

    def _rounding_by_addition(self, name: str, a: Value) -> Value:
        """Rounding without the instruction: adding and subtracting 2^p drops the fraction."""
        limit = self.const_like(2.0**23 if a.dtype == "float32" else 2.0**52, a)
        magnitude = self.fabs(a)
        nearest = self.copysign(self.fsub(self.fadd(magnitude, limit), limit), a)
        one, zero = self.const_like(1.0, a), self.const_like(0.0, a)
        if name == "floor":
            nearest = self.fsub(nearest, self.select(self.fcmp("ogt", nearest, a), one, zero))
        elif name == "ceil":
            nearest = self.fadd(nearest, self.select(self.fcmp("olt", nearest, a), one, zero))
        elif name == "trunc":
            over = self.fcmp("ogt", self.fabs(nearest), magnitude)
            nearest = self.fsub(nearest, self.select(over, self.copysign(one, a), zero))
        return self.select(self.fcmp("olt", magnitude, limit), self.copysign(nearest, a), a)

    def copysign(self, a: Value, sign: Value) -> Value:
        """|a| with the sign of `sign`."""
        if a.dtype == "float16":
            high = self.and_(self.bitcast(sign, "uint16"), self.const(0x8000, "uint16", a.lanes))
            return self.bitcast(self.or_(self.bitcast(self.fabs(a), "uint16"), high), a.dtype)
        return self.call(f"llvm.copysign.{mangled(a)}", a.dtype, a.lanes, [a, sign])

    def isnan(self, a: Value) -> Value:
        """Whether a is not a number."""
        return self.fcmp("uno", a, a)

    def fmin_number(self, a: Value, b: Value) -> Value:
        """b where the operands are unordered or equal, else the smaller: one instruction on x86."""
        return self.select(self.fcmp("olt", a, b), a, b)

    def fmax_number(self, a: Value, b: Value) -> Value:
        """b where the operands are unordered or equal, else the larger: one instruction on x86."""
        return self.select(self.fcmp("ogt", a, b), a, b)

    def _native_minimum(self) -> bool:
        return self.target.triple.startswith(("aarch64", "arm64", "wasm"))

    def minimum(self, a: Value, b: Value) -> Value:
        """The smaller operand of any dtype; NaN if either is (np.minimum)."""
        return self._extremum("lt", "minimum", "min", a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger operand of any dtype; NaN if either is (np.maximum)."""
        return self._extremum("gt", "maximum", "max", a, b)

    def _extremum(self, order: str, name: str, short: str, a: Value, b: Value) -> Value:
        if a.dtype == "bool":
            return self.and_(a, b) if order == "lt" else self.or_(a, b)
        if a.dtype not in FLOATS:
            sign = "u" if a.dtype in UNSIGNED else "s"
            return self.call(f"llvm.{sign}{short}.{mangled(a)}", a.dtype, a.lanes, [a, b])
        if a.dtype != "float16" and self._native_minimum():
            return self.call(f"llvm.{name}.{mangled(a)}", a.dtype, a.lanes, [a, b])
        if a.dtype == "float16":
            a, b = b, a  # of zeros of either sign NumPy takes the first in float16, and the second in wider floats
        best = self.select(self.fcmp("o" + order, a, b), a, b)
        return self.select(self.isnan(a), a, best)

    def fmin(self, a: Value, b: Value) -> Value:
        """The smaller operand, ignoring a NaN beside a number (np.fmin)."""
        return self.select(self.isnan(b), a, self.fmin_number(a, b))

    def fmax(self, a: Value, b: Value) -> Value:
        """The larger operand, ignoring a NaN beside a number (np.fmax)."""
        return self.select(self.isnan(b), a, self.fmax_number(a, b))

    # Integers

    def iadd(self, a: Value, b: Value) -> Value:
        """a + b, wrapping."""
        return self._binary("add", a, b)

    def isub(self, a: Value, b: Value) -> Value:
        """a - b, wrapping."""
        return self._binary("sub", a, b)

    def imul(self, a: Value, b: Value) -> Value:
        """a * b, wrapping."""
        return self._binary("mul", a, b)

    def ineg(self, a: Value) -> Value:
        """-a, wrapping."""
        return self.isub(self.const_like(0, a), a)

    def iabs(self, a: Value) -> Value:
        """|a| of a signed integer; the least one stays itself."""
        if a.dtype in UNSIGNED:
            return a
        self.declare(f"llvm.abs.{mangled(a)}", f"declare {type_of(a)} @llvm.abs.{mangled(a)}({type_of(a)}, i1)")
        return self.call(f"llvm.abs.{mangled(a)}", a.dtype, a.lanes, [a, Value("false", "bool", 1)])

    def and_(self, a: Value, b: Value) -> Value:
        """Bitwise and of integers or bools."""
        return self._binary("and", a, b)

    def or_(self, a: Value, b: Value) -> Value:
        """Bitwise or of integers or bools."""
        return self._binary("or", a, b)

    def xor(self, a: Value, b: Value) -> Value:
        """Bitwise exclusive or of integers or bools."""
        return self._binary("xor", a, b)

    def not_(self, a: Value) -> Value:
        """Bitwise complement of integers, negation of bools."""
        ones = 1 if a.dtype == "bool" else (2 ** _bits(a) - 1 if a.dtype in UNSIGNED else -1)
        return self.xor(a, self.const_like(ones, a))

    def shl(self, a: Value, count: Value | int) -> Value:
        """a shifted left; a count of the width or more gives 0."""
        return self._shift("shl", a, count)

    def lshr(self, a: Value, count: Value | int) -> Value:
        """The bits of a shifted right, zeros entering."""
        return self._shift("lshr", a, count)

    def ashr(self, a: Value, count: Value | int) -> Value:
        """The bits of a shifted right, the sign entering."""
        return self._shift("ashr", a, count)

    def shift_right(self, a: Value, count: Value | int) -> Value:
        """a >> count by the signedness of its dtype."""
        return self._shift("lshr" if a.dtype in UNSIGNED else "ashr", a, count)

    def _shift(self, op: str, a: Value, count: Value | int) -> Value:
        if isinstance(count, int):
            return self._binary(op, a, self.const_like(count, a))
        width = _bits(a)
        inside = self.fresh(f"icmp ult {type_of(a)} {count.name}, {self.const_like(width, a).name}", "bool", a.lanes)
        safe = self.select(inside, count, self.const_like(width - 1 if op == "ashr" else 0, a))
        shifted = self._binary(op, a, safe)
        return shifted if op == "ashr" else self.select(inside, shifted, self.const_like(0, a))

    # Any dtype

    def add(self, a: Value, b: Value) -> Value:
        """a + b as NumPy has it: bools or."""
        if a.dtype == "bool":
            return self.or_(a, b)
        return self.fadd(a, b) if a.dtype in FLOATS else self.iadd(a, b)

    def sub(self, a: Value, b: Value) -> Value:
        """a - b; bools, which NumPy refuses, exclusive or."""
        if a.dtype == "bool":
            return self.xor(a, b)
        return self.fsub(a, b) if a.dtype in FLOATS else self.isub(a, b)

    def mul(self, a: Value, b: Value) -> Value:
        """a * b as NumPy has it: bools and."""
        if a.dtype == "bool":
            return self.and_(a, b)
        return self.fmul(a, b) if a.dtype in FLOATS else self.imul(a, b)

    def neg(self, a: Value) -> Value:
        """-a"""
        return self.fneg(a) if a.dtype in FLOATS else self.ineg(a)

    def abs(self, a: Value) -> Value:
        """|a|"""
        if a.dtype == "bool":
            return a
        return self.fabs(a) if a.dtype in FLOATS else self.iabs(a)

    def sign(self, a: Value) -> Value:
        """-1, 0 or 1; NaN stays (np.sign)."""
        zero, one = self.const_like(0, a), self.const_like(1, a)
        if a.dtype in UNSIGNED or a.dtype == "bool":
            return self.select(self.compare("ne", a, zero), one, zero)
        minus = self.const_like(-1, a)
        signed = self.select(self.compare("gt", a, zero), one, zero)
        signed = self.select(self.compare("lt", a, zero), minus, signed)
        return self.select(self.isnan(a), a, signed) if a.dtype in FLOATS else signed

    def compare(self, order: str, a: Value, b: Value) -> Value:
        """A bool for one of eq, ne, lt, le, gt, ge; with NaN only ne holds."""
        if a.dtype in FLOATS:
            return self.fcmp(_FLOAT_PREDICATES[order], a, b)
        if order in ("eq", "ne"):
            return self.icmp(order, a, b)
        unsigned = a.dtype in UNSIGNED or a.dtype in ("bool", "ptr")
        return self.icmp(("u" if unsigned else "s") + order, a, b)

    def fcmp(self, predicate: str, a: Value, b: Value) -> Value:
        """A bool for an LLVM floating-point predicate such as "olt" or "uno"."""
        if a.dtype == "float16":
            a, b = self.cast(a, "float32"), self.cast(b, "float32")
        return self.fresh(f"fcmp {predicate} {type_of(a)} {a.name}, {b.name}", "bool", a.lanes)

    def icmp(self, predicate: str, a: Value, b: Value) -> Value:
        """A bool for an LLVM integer predicate such as "slt" or "ult"."""
        return self.fresh(f"icmp {predicate} {type_of(a)} {a.name}, {b.name}", "bool", a.lanes)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        """a where the condition holds, else b, lane by lane; a scalar condition chooses all lanes."""
        return self.fresh(
            f"select {type_of(condition)} {condition.name}, {type_of(a)} {a.name}, {type_of(a)} {b.name}",
            a.dtype,
            a.lanes,
        )

    # Lanes

    def splat(self, a: Value, lanes: int) -> Value:
        """A scalar in every lane of a vector."""
        if lanes == 1 or a.lanes == lanes:
            return a
        kind, vector = type_of(a), llvm_type(a.dtype, lanes)
        one = self.fresh(f"insertelement {vector} poison, {kind} {a.name}, i64 0", a.dtype, lanes)
        return self.fresh(
            f"shufflevector {vector} {one.name}, {vector} poison, <{lanes} x i32> zeroinitializer",
            a.dtype,
            lanes,
        )

    def extract(self, a: Value, lane: int | Value) -> Value:
        """One lane as a scalar."""
        if a.lanes == 1:
            return a
        at = f"i64 {lane}" if isinstance(lane, int) else f"{type_of(lane)} {lane.name}"
        return self.fresh(f"extractelement {type_of(a)} {a.name}, {at}", a.dtype, 1)

    def insert(self, a: Value, scalar: Value, lane: int) -> Value:
        """a with one lane replaced."""
        if a.lanes == 1:
            return scalar
        return self.fresh(
            f"insertelement {type_of(a)} {a.name}, {type_of(scalar)} {scalar.name}, i64 {lane}",
            a.dtype,
            a.lanes,
        )

    def shuffle(self, a: Value, b: Value | None, lanes: Sequence[int]) -> Value:
        """A vector of chosen lanes, counted through a and then b."""
        other = "poison" if b is None else b.name
        if len(lanes) == 1:
            lane = lanes[0]
            return self.extract(a, lane) if lane < a.lanes or b is None else self.extract(b, lane - a.lanes)
        picks = ", ".join(f"i32 {i}" for i in lanes)
        return self.fresh(
            f"shufflevector {type_of(a)} {a.name}, {type_of(a)} {other}, <{len(lanes)} x i32> <{picks}>",
            a.dtype,
            len(lanes),
        )

    def concat(self, a: Value, b: Value) -> Value:
        """The lanes of a and then of b, which has as many."""
        if a.lanes == 1:
            return self.insert(self.insert(self.undef(a.dtype, 2), a, 0), b, 1)
        return self.shuffle(a, b, range(2 * a.lanes))

    def reduce(self, a: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """All lanes combined in a fixed tree: the upper half onto the lower until one is left."""
        while a.lanes > 1:
            half = a.lanes // 2
            low, high = self.shuffle(a, None, range(half)), self.shuffle(a, None, range(half, 2 * half))
            both = combine(low, high)
            if a.lanes % 2:
                first = combine(self.extract(both, 0), self.extract(a, a.lanes - 1))
                both = self.insert(both, first, 0)
            a = both
        return a

    def any_lane(self, a: Value) -> Value:
        """A scalar bool: whether any lane of a bool vector holds."""
        if a.lanes == 1:
            return a
        return self.call(f"llvm.vector.reduce.or.{mangled(a)}", "bool", 1, [a])

    def any_nan(self, a: Value, lanes: int) -> Value:
        """A bool for each of `lanes` groups of lanes of `a`: whether one is NaN. Both numbers are powers of two."""
        if a.lanes == lanes:
            return self.isnan(a)
        half = a.lanes // 2
        found = self.fcmp("uno", self.shuffle(a, None, range(half)), self.shuffle(a, None, range(half, 2 * half)))
        while found.lanes > lanes:
            half //= 2
            found = self.or_(self.shuffle(found, None, range(half)), self.shuffle(found, None, range(half, 2 * half)))
        return found

    def lane_bits(self, a: Value) -> Value:
        """A bool vector of up to 64 lanes as the lowest bits of a uint64, lane 0 first."""
        if a.lanes == 1:
            return self._convert("zext", a, "uint64")
        word = self.fresh(f"bitcast {type_of(a)} {a.name} to i{a.lanes}", "uint64")
        if a.lanes == 64:
            return word
        return self.fresh(f"zext i{a.lanes} {word.name} to i64", "uint64")

    def count_trailing_zeros(self, a: Value) -> Value:
        """The position of the lowest bit of a scalar uint64 that is not 0, as an int64."""
        self.declare("llvm.cttz.i64", "declare i64 @llvm.cttz.i64(i64, i1)")
        return self.fresh(f"call i64 @llvm.cttz.i64(i64 {a.name}, i1 true)", "int64")


def _bits(a: Value) -> int:
    return ITEM_SIZES[a.dtype] * 8
