"""AVX-512 instructions that the formulas use on full registers of 512 bits."""

from collections.abc import Sequence

from graphkb.codegen.builder import Value, type_of
from graphkb.codegen.vecmath.coefficients import PIECES_FIRST, TABLES
from graphkb.codegen.vecmath.expression import Expr, in_registers

_SUFFIX = {"float32": "ps.512", "float64": "pd.512"}
_DEFAULT_ROUNDING = "i32 4"


def _masked(args: Sequence[Expr], name: str, immediate: str = "") -> Expr:
    """Call an intrinsic whose last operands are what masked-off lanes keep, a full mask and the rounding."""
    b, dtype = args[0].b, args[0].dtype

    def write(*operands: Value) -> Value:
        kind, lanes = type_of(operands[0]), operands[0].lanes
        full = f"llvm.x86.avx512.mask.{name}.{_SUFFIX[dtype]}"
        extra = ", i32" if immediate else ""
        types = ", ".join([kind] * len(operands)) + extra
        b.declare(full, f"declare {kind} @{full}({types}, {kind}, i{lanes}, i32)")
        listed = ", ".join(f"{kind} {v.name}" for v in operands) + immediate
        call = f"call {kind} @{full}({listed}, {kind} poison, i{lanes} -1, {_DEFAULT_ROUNDING})"
        return b.fresh(call, dtype, lanes)

    return Expr(b, in_registers(b, [a.value for a in args], write))


def scalef(x: Expr, exponent: Expr) -> Expr:
    """x * 2^floor(exponent), rounded once, for any exponent."""
    return _masked([x, exponent], "scalef")


def getexp(x: Expr) -> Expr:
    """floor(log2(|x|)) as a float, also of denormals; -inf of 0, inf of inf, NaN of NaN."""
    return _masked([x], "getexp")


def getmant(x: Expr, around_one: bool = True) -> Expr:
    """The mantissa of x in [0.75, 1.5) or else in [1, 2), also of denormals; NaN below zero, 1 of 0 and inf."""
    return _masked([x], "getmant", f", i32 {11 if around_one else 8}")


# What replaces the result for each class of the argument, four bits a class: -inf for 0, NaN for negative numbers
# and -inf, inf for inf; nothing for the others.
_FIX_LOG = 4 << 8 | 3 << 16 | 5 << 20 | 3 << 24


def fix_log(result: Expr, x: Expr) -> Expr:
    """`result`, but the logarithm's value where x is zero, negative or infinite."""
    b, dtype = x.b, x.dtype

    def write(left: Value, right: Value) -> Value:
        kind, lanes = type_of(left), left.lanes
        bits = "i32" if dtype == "float32" else "i64"
        name = f"llvm.x86.avx512.mask.fixupimm.{_SUFFIX[dtype]}"
        b.declare(name, f"declare {kind} @{name}({kind}, {kind}, <{lanes} x {bits}>, i32, i{lanes}, i32)")
        listed = f"{kind} {left.name}, {kind} {right.name}, <{lanes} x {bits}> splat ({bits} {_FIX_LOG})"
        return b.fresh(f"call {kind} @{name}({listed}, i32 0, i{lanes} -1, {_DEFAULT_ROUNDING})", dtype, lanes)

    return Expr(b, in_registers(b, [result.value, x.value], write))


def table_lookup(index: Expr, table: Sequence[float], dtype: str) -> Expr:
    """table[index mod len(table)], where the table fills one or two registers."""
    b, lanes = index.b, index.lanes
    bits = 32 if dtype == "float32" else 64
    int_kind = f"<{lanes} x i{bits}>"
    kind = f"<{lanes} x {'float' if bits == 32 else 'double'}>"
    short = "ps" if bits == 32 else "pd"
    first = b.const_vector(table[:lanes], dtype).name
    if len(table) == lanes:
        name = f"llvm.x86.avx512.permvar.{'sf' if bits == 32 else 'df'}.512"
        b.declare(name, f"declare {kind} @{name}({kind}, {int_kind})")
        text = f"call {kind} @{name}({kind} {first}, {int_kind} {index.value.name})"
        return Expr(b, b.fresh(text, dtype, lanes))
    second = b.const_vector(table[lanes:], dtype).name
    name = f"llvm.x86.avx512.vpermi2var.{short}.512"
    b.declare(name, f"declare {kind} @{name}({kind}, {int_kind}, {kind})")
    text = f"call {kind} @{name}({kind} {first}, {int_kind} {index.value.name}, {kind} {second})"
    return Expr(b, b.fresh(text, dtype, lanes))


def table_split(x: Expr, name: str) -> tuple[Expr, Expr, Expr, Expr]:
    """The exponent, r = c m - 1 for a reciprocal c from a table, and a logarithm of 1 / c in two parts.

    Of 0, infinity and NaN the parts carry the logarithm's value on; r is NaN below zero.
    """
    rows = TABLES[name]
    exponent, mantissa = getexp(x), getmant(x, around_one=False)
    fraction = 23 if x.dtype == "float32" else 52
    index = mantissa.bits() >> (fraction + 1 - len(rows[0]).bit_length())
    reciprocal, high, low = (table_lookup(index, row, x.dtype) for row in rows)
    return exponent, mantissa.fma(reciprocal, -1.0), high, low


def piecewise(x: Expr, name: str, last: float) -> Expr:
    """An odd float32 function by polynomials around the centers of 32 intervals, constant beyond `last`.

    The intervals are quarters of octaves. Their number is read from the lowest three bits of the exponent and the
    highest two of the fraction, therefore they may span eight octaves; the first one reaches down to 0, has its
    center there and gives what is to be added to x.
    """
    rows = TABLES[name]
    size = abs(x).at_most(last)
    index = size.at_least(PIECES_FIRST * 0.9375).bits() >> 21
    step = size - table_lookup(index, rows[0], "float32")
    total = table_lookup(index, rows[-1], "float32")
    for row in reversed(rows[2:-1]):
        total = total.fma(step, table_lookup(index, row, "float32"))
    base = (size < PIECES_FIRST).where(size, table_lookup(index, rows[1], "float32"))
    return total.fma(step, base).copysign(x)
