"""Conversions between dtypes with the results of NumPy's astype on x86-64."""

from graphkb.codegen.builder_core import (
    FLOATS,
    ITEM_SIZES,
    LLVM_TYPES,
    UNSIGNED,
    ModuleText,
    Value,
    llvm_type,
    type_of,
)


class Casts(ModuleText):
    """Conversions of values."""

    def _convert(self, op: str, a: Value, dtype: str) -> Value:
        return self.fresh(f"{op} {type_of(a)} {a.name} to {llvm_type(dtype, a.lanes)}", dtype, a.lanes)

    def bitcast(self, a: Value, dtype: str) -> Value:
        """The same bits as another dtype of the same width."""
        if LLVM_TYPES[a.dtype] == LLVM_TYPES[dtype]:
            return Value(a.name, dtype, a.lanes)
        return self._convert("bitcast", a, dtype)

    def cast(self, a: Value, dtype: str) -> Value:
        """a.astype(dtype), for every pair of dtypes.

        Integers wrap. Floats are truncated towards zero; NaN and values beyond int32 (int64) give its least
        number, narrower integers are cut out of int32 and uint32 out of int64, as in NumPy on x86-64
        (whose loops over long arrays give yet other values beyond uint32).
        """
        if a.dtype == dtype:
            return a
        if dtype == "bool":
            return self._to_bool(a)
        if a.dtype == "bool":
            return self._from_bool(a, dtype)
        if a.dtype in FLOATS:
            return self._float_to_float(a, dtype) if dtype in FLOATS else self._float_to_int(a, dtype)
        if dtype in FLOATS:
            return self._int_to_float(a, dtype)
        return self._int_to_int(a, dtype)

    def _to_bool(self, a: Value) -> Value:
        if a.dtype == "float16":
            magnitude = self.fresh(f"and {type_of(a)} {a.name}, {self.const(0x7FFF, 'uint16', a.lanes).name}",
                                   "uint16", a.lanes)  # fmt: skip
            return self._to_bool(magnitude)
        zero = self.const_like(0, a).name
        predicate = "fcmp une" if a.dtype in FLOATS else "icmp ne"
        return self.fresh(f"{predicate} {type_of(a)} {a.name}, {zero}", "bool", a.lanes)

    def _from_bool(self, a: Value, dtype: str) -> Value:
        if dtype not in FLOATS:
            return self._convert("zext", a, dtype)
        one, zero = self.const(1, dtype, a.lanes), self.const(0, dtype, a.lanes)
        return self._choose(a, one, zero)

    def _choose(self, condition: Value, a: Value, b: Value) -> Value:
        kind = type_of(a)
        return self.fresh(
            f"select {type_of(condition)} {condition.name}, {kind} {a.name}, {kind} {b.name}",
            a.dtype,
            a.lanes,
        )

    def _int_to_int(self, a: Value, dtype: str) -> Value:
        have, want = ITEM_SIZES[a.dtype], ITEM_SIZES[dtype]
        if have == want:
            return self.bitcast(a, dtype)
        if want < have:
            return self._convert("trunc", a, dtype)
        return self._convert("zext" if a.dtype in UNSIGNED else "sext", a, dtype)

    def _int_to_float(self, a: Value, dtype: str) -> Value:
        if dtype == "float16":
            return self.cast(self.cast(a, "float32"), dtype)
        if a.dtype in UNSIGNED and ITEM_SIZES[a.dtype] < 4:
            a = self.cast(a, "int32")  # signed conversions are one instruction everywhere
        return self._convert("uitofp" if a.dtype in UNSIGNED else "sitofp", a, dtype)

    def _float_to_int(self, a: Value, dtype: str) -> Value:
        if a.dtype == "float16":
            return self._float_to_int(self.cast(a, "float32"), dtype)
        if dtype == "int32" or dtype == "int64":
            return self._float_to_signed(a, dtype)
        if dtype == "uint64":
            return self._float_to_uint64(a)
        via = "int64" if dtype == "uint32" else "int32"
        return self.cast(self._float_to_signed(a, via), dtype)

    def _float_to_signed(self, a: Value, dtype: str) -> Value:
        """The whole part where it fits, else the least integer; discarded poison stays behind the select."""
        bits = ITEM_SIZES[dtype] * 8 - 1
        limit = self.const_like(2.0**bits, a).name
        low = self.const_like(-(2.0**bits), a).name
        above = self.fresh(f"fcmp oge {type_of(a)} {a.name}, {low}", "bool", a.lanes)
        below = self.fresh(f"fcmp olt {type_of(a)} {a.name}, {limit}", "bool", a.lanes)
        kind = type_of(above)
        fits = self.fresh(f"and {kind} {above.name}, {below.name}", "bool", a.lanes)
        least = self.const(-(2**bits), dtype, a.lanes)
        return self._choose(fits, self._convert("fptosi", a, dtype), least)

    def _float_to_uint64(self, a: Value) -> Value:
        half = self.const_like(2.0**63, a)
        high = self.fresh(f"fcmp oge {type_of(a)} {a.name}, {half.name}", "bool", a.lanes)
        shifted = self.fresh(f"fsub {type_of(a)} {a.name}, {half.name}", a.dtype, a.lanes)
        small = self._float_to_signed(self._choose(high, shifted, a), "int64")
        top = self._choose(high, self.const(-(2**63), "int64", a.lanes), self.const(0, "int64", a.lanes))
        return self.fresh(f"xor {type_of(small)} {small.name}, {top.name}", "uint64", a.lanes)

    # float16

    def _float_to_float(self, a: Value, dtype: str) -> Value:
        if a.dtype == "float16":
            single = self._half_to_single(a)
            return single if dtype == "float32" else self.cast(single, dtype)
        if dtype != "float16":
            return self._convert("fpext" if dtype == "float64" else "fptrunc", a, dtype)
        if a.dtype == "float64":
            a = self._round_to_odd(a)
        return self._single_to_half(a)

    def _half_type(self, lanes: int) -> str:
        return "half" if lanes == 1 else f"<{lanes} x half>"

    def _half_to_single(self, a: Value) -> Value:
        if self.target.has_float16:
            kind = self._half_type(a.lanes)
            half = self.fresh(f"bitcast {type_of(a)} {a.name} to {kind}", a.dtype, a.lanes)
            return self.fresh(f"fpext {kind} {half.name} to {llvm_type('float32', a.lanes)}", "float32", a.lanes)
        # Shift the exponent and fraction into place; multiplying by 2^112 rebuilds the exponent and
        # normalizes denormals exactly. Infinities and NaN get the full exponent afterwards.
        bits = self._convert("zext", Value(a.name, "uint16", a.lanes), "uint32")
        kind = type_of(bits)

        def op(name: str, x: Value, number: int) -> Value:
            return self.fresh(f"{name} {kind} {x.name}, {self.const_like(number, x).name}", "uint32", a.lanes)

        magnitude = op("shl", op("and", bits, 0x7FFF), 13)
        sign = op("shl", op("and", bits, 0x8000), 16)
        small = self.bitcast(magnitude, "float32")
        scaled = self.fresh(
            f"fmul {type_of(small)} {small.name}, {self.const_like(2.0**112, small).name}", "float32", a.lanes
        )
        special = self.fresh(
            f"icmp uge {kind} {magnitude.name}, {self.const_like(0x7C00 << 13, magnitude).name}",
            "bool",
            a.lanes,
        )
        merged = self._choose(special, op("or", magnitude, 0x7F800000), self.bitcast(scaled, "uint32"))
        signed = self.fresh(f"or {kind} {merged.name}, {sign.name}", "uint32", a.lanes)
        return self.bitcast(signed, "float32")

    def _single_to_half(self, a: Value) -> Value:
        if self.target.has_float16:
            kind = self._half_type(a.lanes)
            half = self.fresh(f"fptrunc {type_of(a)} {a.name} to {kind}", "float16", a.lanes)
            return self.fresh(f"bitcast {kind} {half.name} to {llvm_type('float16', a.lanes)}", "float16", a.lanes)
        bits = self.bitcast(a, "uint32")
        kind, lanes = type_of(bits), a.lanes

        def op(name: str, x: Value, number: int) -> Value:
            return self.fresh(f"{name} {kind} {x.name}, {self.const_like(number, x).name}", "uint32", lanes)

        magnitude = op("and", bits, 0x7FFFFFFF)
        # Normal results: rebias by -112, add just under half a unit plus the odd bit, drop 13 bits.
        odd = op("and", op("lshr", magnitude, 13), 1)
        biased = op("add", magnitude, (2**32 - (112 << 23)) + 0xFFF)
        normal = op("lshr", self.fresh(f"add {kind} {biased.name}, {odd.name}", "uint32", lanes), 13)
        # Denormal results: adding 0.5 aligns the fraction to 2^-24 and the machine rounds it.
        value = self.bitcast(magnitude, "float32")
        half = self.const_like(0.5, value)
        moved = self.fresh(f"fadd {type_of(value)} {value.name}, {half.name}", "float32", lanes)
        tiny = op("sub", self.bitcast(moved, "uint32"), 0x3F000000)

        def below(x: Value, number: int) -> Value:
            return self.fresh(f"icmp ult {kind} {x.name}, {self.const_like(number, x).name}", "bool", lanes)

        result = self._choose(below(magnitude, 113 << 23), tiny, normal)
        infinite, nan = self.const_like(0x7C00, bits), self.const_like(0x7E00, bits)
        result = self._choose(below(magnitude, 143 << 23), result, infinite)
        result = self._choose(below(magnitude, 0x7F800001), result, nan)
        sign = op("and", op("lshr", bits, 16), 0x8000)
        signed = self.fresh(f"or {kind} {result.name}, {sign.name}", "uint32", lanes)
        return Value(self._convert("trunc", signed, "uint16").name, "float16", lanes)

    def _round_to_odd(self, a: Value) -> Value:
        """float64 to float32 such that a second rounding gives what one rounding would have given.

        The bits that float32 has no room for are cut off, and the last one that stays is set if any of them was: adding
        all ones carries into it.
        """
        bits = self.bitcast(a, "uint64")
        kind, lanes = type_of(bits), a.lanes
        spare = self.const_like(2**29 - 1, bits).name
        rest = self.fresh(f"and {kind} {bits.name}, {spare}", "uint64", lanes)
        carry = self.fresh(f"add {kind} {rest.name}, {spare}", "uint64", lanes)
        marked = self.fresh(f"or {kind} {bits.name}, {carry.name}", "uint64", lanes)
        kept = self.fresh(f"and {kind} {marked.name}, {self.const_like(2**64 - 2**29, bits).name}", "uint64", lanes)
        return self._convert("fptrunc", self.bitcast(kept, "float64"), "float32")
