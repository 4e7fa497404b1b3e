"""Truncation of floats to signed integers by the instructions of x86, which give the least one beyond the range."""

from graphkb.codegen.builder_core import Value, llvm_type
from graphkb.codegen.builder_ops import Operations

# register bits, from, to: the intrinsic, and the lanes of its result
_PLAIN = {
    (128, "float32", "int32"): ("sse2.cvttps2dq", 4),
    (128, "float64", "int32"): ("sse2.cvttpd2dq", 4),
    (256, "float32", "int32"): ("avx.cvtt.ps2dq.256", 8),
    (256, "float64", "int32"): ("avx.cvtt.pd2dq.256", 4),
}
_MASKED = {
    ("float32", "int32"): "cvttps2dq",
    ("float64", "int32"): "cvttpd2dq",
    ("float32", "int64"): "cvttps2qq",
    ("float64", "int64"): "cvttpd2qq",
}


class Truncation(Operations):
    """Vectors are converted one register at a time; elsewhere the range is checked as for every machine."""

    def _float_to_signed(self, a: Value, dtype: str) -> Value:
        bits = self.target.vector_bits
        known = self.target.is_avx512 or (bits, a.dtype, dtype) in _PLAIN
        if a.lanes == 1 or not self.target.is_x86 or not known:
            return super()._float_to_signed(a, dtype)
        width = min(self.target.lanes(a.dtype), self.target.lanes(dtype))
        parts = []
        for start in range(0, a.lanes, width):
            picks = [min(i, a.lanes - 1) for i in range(start, start + width)]
            part = a if width == a.lanes else self.shuffle(a, None, picks)
            parts.append(self._truncate_register(part, dtype))
        while len(parts) & (len(parts) - 1):
            parts.append(parts[-1])
        while len(parts) > 1:
            parts = [self.concat(parts[i], parts[i + 1]) for i in range(0, len(parts), 2)]
        return parts[0] if parts[0].lanes == a.lanes else self.shuffle(parts[0], None, range(a.lanes))

    def _truncate_register(self, a: Value, dtype: str) -> Value:
        kind = llvm_type(a.dtype, a.lanes)
        if self.target.is_avx512:
            whole = llvm_type(dtype, a.lanes)
            name = f"llvm.x86.avx512.mask.{_MASKED[a.dtype, dtype]}.512"
            self.declare(name, f"declare {whole} @{name}({kind}, {whole}, i{a.lanes}, i32)")
            return self.fresh(
                f"call {whole} @{name}({kind} {a.name}, {whole} zeroinitializer, i{a.lanes} -1, i32 4)", dtype, a.lanes
            )
        short, lanes = _PLAIN[self.target.vector_bits, a.dtype, dtype]
        name = f"llvm.x86.{short}"
        whole = llvm_type(dtype, lanes)
        self.declare(name, f"declare {whole} @{name}({kind})")
        result = self.fresh(f"call {whole} @{name}({kind} {a.name})", dtype, lanes)
        return result if lanes == a.lanes else self.shuffle(result, None, range(a.lanes))
