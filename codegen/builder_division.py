"""Division, remainder and modulo with NumPy's results for every operand, without traps and library calls."""

from graphkb.codegen.builder_core import FLOATS, ITEM_SIZES, UNSIGNED, Value
from graphkb.codegen.builder_truncation import Truncation


class Division(Truncation):
    """Quotients. Integers divided by zero give 0; the least integer divided by -1 stays itself."""

    def sdiv(self, a: Value, b: Value) -> Value:
        """The quotient of signed integers, rounded towards zero."""
        return self._truncated(a, b)[0]

    def udiv(self, a: Value, b: Value) -> Value:
        """The quotient of unsigned integers."""
        return self._truncated(a, b)[0]

    def floor_divide(self, a: Value, b: Value) -> Value:
        """np.floor_divide of integers or floats."""
        if a.dtype in FLOATS:
            return self._float(lambda x, y: self._float_divmod(x, y)[0], a, b)
        if a.dtype in UNSIGNED or a.dtype == "bool":
            return self._truncated(a, b)[0]
        quotient, remainder = self._truncated(a, b)
        off = self._rounds_down(remainder, b)
        return self.select(off, self.isub(quotient, self.const_like(1, a)), quotient)

    def remainder(self, a: Value, b: Value) -> Value:
        """np.remainder of integers or floats: the sign is that of b."""
        if a.dtype in FLOATS:
            return self._float(lambda x, y: self._float_divmod(x, y)[1], a, b)
        remainder = self._truncated(a, b)[1]
        if a.dtype in UNSIGNED or a.dtype == "bool":
            return remainder
        return self.select(self._rounds_down(remainder, b), self.iadd(remainder, b), remainder)

    def fmod(self, a: Value, b: Value) -> Value:
        """np.fmod of integers or floats: the sign is that of a; exact."""
        if a.dtype in FLOATS:
            return self._float(self._float_fmod, a, b)
        return self._truncated(a, b)[1]

    # Integers

    def _rounds_down(self, remainder: Value, b: Value) -> Value:
        zero = self.const_like(0, b)
        differ = self.icmp("slt", self.xor(remainder, b), zero)
        return self.and_(differ, self.icmp("ne", remainder, zero))

    def _truncated(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Quotient and remainder towards zero; both 0 where b is 0."""
        if a.dtype == "bool":
            return self.and_(a, b), self.const_like(0, a)
        zero, one = self.const_like(0, a), self.const_like(1, a)
        by_zero = self.icmp("eq", b, zero)
        safe = self.select(by_zero, one, b)
        if a.dtype not in UNSIGNED:
            # The least integer over -1 overflows: negate instead of dividing.
            minus = self.icmp("eq", b, self.const_like(-1, b))
            safe = self.select(minus, one, safe)
            quotient = self._divide(a, safe)
            quotient = self.select(minus, self.ineg(a), quotient)
        else:
            quotient = self._divide(a, safe)
        quotient = self.select(by_zero, zero, quotient)
        remainder = self.isub(a, self.imul(quotient, b))
        return quotient, self.select(by_zero, zero, remainder)

    def _divide(self, a: Value, b: Value) -> Value:
        """The quotient where b is neither 0 nor -1.

        Machines divide integers one lane at a time. A float quotient of p bits cannot round across a whole
        number while the operands have fewer than p / 2 bits, so vectors of narrow integers go that way.
        """
        size = ITEM_SIZES[a.dtype]
        if a.lanes == 1 or size == 8:
            return self._binary("udiv" if a.dtype in UNSIGNED else "sdiv", a, b)
        wide = "float64" if size == 4 else "float32"
        quotient = self.fdiv(self.cast(a, wide), self.cast(b, wide))
        if a.dtype == "uint32":
            return self._convert("fptoui", quotient, "uint32")
        return self.cast(self._convert("fptosi", quotient, "int32"), a.dtype)

    # Floats

    def _float_fmod(self, a: Value, b: Value) -> Value:
        if a.dtype == "float32":
            exact = self._fmod_steps(self.cast(a, "float64"), self.cast(b, "float64"), 28, False)
            return self.copysign(self.cast(exact, "float32"), a)
        if self.target.has_fma:
            return self._fmod_steps(a, b, 51, True)
        return self._fmod_steps(a, b, 24, True)

    def _fmod_steps(self, a: Value, b: Value, bits: int, wide: bool) -> Value:
        """The remainder of float64 by steps that each take off up to `bits` bits of the quotient exactly.

        One step subtracts q * d from the remainder, where d is b scaled by a power of two such that the
        quotient stays below 2^bits. q may be one too large by rounding, which adding d back mends; q * d is
        exact in float64 for operands from float32, by the fused instruction, or in two parts of d.
        """
        zero, one = self.const_like(0.0, a), self.const_like(1.0, a)
        top, low = self.fabs(a), self.fabs(b)
        infinity = self.const_like(float("inf"), a)
        valid = self.and_(self.fcmp("olt", top, infinity), self.fcmp("ogt", low, zero))
        # Scaling by 2^k keeps remainders exact and moves denormals, whose exponent cannot be read, away.
        small = self.const_like(0.0, a)
        unscale = one
        if wide:
            small_b = self.fcmp("olt", low, self.const_like(2.0**-960, a))
            big_a = self.fcmp("ogt", top, self.const_like(2.0**900, a))
            up = self.select(big_a, one, self.const_like(2.0**110, a))
            low = self.fmul(low, self.select(small_b, up, one))
            top = self.fmul(top, self.select(small_b, up, one))
            unscale = self.select(self.and_(small_b, self.not_(big_a)), self.const_like(2.0**-110, a), unscale)
        safe_low = self.select(valid, low, one)
        start = self.select(valid, top, small)
        low = safe_low

        def more(rest: Value) -> Value:
            return self.any_lane(self.fcmp("oge", rest, low))

        def step(rest: Value) -> list[Value]:
            return [self._fmod_step(rest, low, bits)]

        (rest,) = self.repeat(more, step, [start], "fmod")
        result = self.copysign(self.fmul(rest, unscale), a)
        keep = self.and_(self.fcmp("olt", self.fabs(a), infinity), self.fcmp("oeq", self.fabs(b), infinity))
        result = self.select(keep, a, result)
        nan = self.const_like(float("nan"), a)
        return self.select(self.or_(valid, keep), result, nan)

    def _fmod_step(self, rest: Value, low: Value, bits: int) -> Value:
        exponent_mask = self.const(0x7FF << 52, "int64", rest.lanes)
        zero = self.const(0, "int64", rest.lanes)
        divisor_bits = self.bitcast(low, "int64")
        rest_exponent = self.and_(self.bitcast(rest, "int64"), exponent_mask)
        gap = self.isub(rest_exponent, self.and_(divisor_bits, exponent_mask))
        shift = self.isub(gap, self.const((bits - 1) << 52, "int64", rest.lanes))
        shift = self.select(self.icmp("sgt", shift, zero), shift, zero)
        divisor = self.bitcast(self.iadd(divisor_bits, shift), "float64")
        quotient = self.trunc(self.fdiv(rest, divisor))
        if bits >= 50:
            left = self.fma(self.fneg(quotient), divisor, rest)
        elif bits == 28:
            left = self.fsub(rest, self.fmul(quotient, divisor))
        else:
            top_bits = self.and_(self.bitcast(divisor, "int64"), self.const(-(1 << 28), "int64", rest.lanes))
            high = self.bitcast(top_bits, "float64")
            left = self.fsub(rest, self.fmul(quotient, high))
            left = self.fsub(left, self.fmul(quotient, self.fsub(divisor, high)))
        negative = self.fcmp("olt", left, self.const_like(0.0, left))
        return self.select(negative, self.fadd(left, divisor), left)

    def _float_divmod(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Floored quotient and modulo as NumPy composes them from fmod."""
        zero, one = self.const_like(0.0, a), self.const_like(1.0, a)
        rest = self._float_fmod(a, b)
        by_zero = self.fcmp("oeq", b, zero)
        plain = self.fdiv(a, b)
        quotient = self.fdiv(self.fsub(a, rest), b)
        nonzero = self.fcmp("une", rest, zero)
        differ = self.xor(self.fcmp("olt", b, zero), self.fcmp("olt", rest, zero))
        adjust = self.and_(nonzero, differ)
        quotient = self.select(adjust, self.fsub(quotient, one), quotient)
        modulo = self.select(adjust, self.fadd(rest, b), rest)
        modulo = self.select(nonzero, modulo, self.copysign(zero, b))
        floored = self.floor(quotient)
        off = self.fcmp("ogt", self.fsub(quotient, floored), self.const_like(0.5, a))
        floored = self.select(off, self.fadd(floored, one), floored)
        floored = self.select(self.fcmp("une", quotient, zero), floored, self.copysign(zero, plain))
        return self.select(by_zero, plain, floored), self.select(by_zero, rest, modulo)
