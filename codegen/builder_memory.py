"""Loads, stores, gathers and scatters, plain and masked."""

from graphkb.codegen.builder_core import ITEM_SIZES, Value, llvm_type, memory_type, type_of
from graphkb.codegen.builder_division import Division
from graphkb.codegen.builder_ops import mangled


class Memory(Division):
    """Access to memory. Addresses count in elements, alignments in bytes; a bool fills a byte."""

    def gep(self, base: Value, index: Value | int, dtype: str) -> Value:
        """The address of element `index` of an array of `dtype`; a vector index gives a vector."""
        lanes = 1 if isinstance(index, int) else max(index.lanes, base.lanes)
        at = f"i64 {index}" if isinstance(index, int) else f"{type_of(index)} {index.name}"
        if isinstance(index, int) and base.lanes > 1:
            at, lanes = f"<{base.lanes} x i64> splat (i64 {index})", base.lanes
        element = "ptr" if dtype == "ptr" else memory_type(dtype)
        return self.fresh(f"getelementptr {element}, {type_of(base)} {base.name}, {at}", "ptr", lanes)

    def byte_offset(self, base: Value, offset: Value | int) -> Value:
        """The address `offset` bytes behind `base`."""
        return self.gep(base, offset, "uint8")

    def _align(self, dtype: str, align: int | None) -> int:
        return align if align is not None else ITEM_SIZES.get(dtype, self.target.pointer_bits // 8)

    def load(self, address: Value, dtype: str, lanes: int = 1, align: int | None = None, flags: str = "") -> Value:
        """`lanes` neighboring elements.

        Args:
            address: of the first element.
            dtype: of the elements.
            lanes: how many.
            align: what the address is a multiple of, in bytes; the element's size if None.
            flags: LLVM metadata to append, such as "!nontemporal !0".
        """
        kind = memory_type(dtype, lanes)
        tail = f", {flags}" if flags else ""
        text = f"load {kind}, ptr {address.name}, align {self._align(dtype, align)}{tail}"
        if dtype == "bool":
            return self.as_bool(self.fresh(text, "uint8", lanes))
        return self.fresh(text, dtype, lanes)

    def store(self, value: Value, address: Value, align: int | None = None, flags: str = "") -> None:
        """Write neighboring elements; see `load`."""
        held = self._as_memory(value)
        tail = f", {flags}" if flags else ""
        place = f"ptr {address.name}, align {self._align(value.dtype, align)}{tail}"
        self.line(f"store {type_of(held)} {held.name}, {place}")

    def prefetch(self, address: Value, to_write: bool = False) -> None:
        """Ask for a line of memory, which may not exist: it will soon be read, or written."""
        name = "llvm.prefetch.p0"
        self.declare(name, f"declare void @{name}(ptr, i32 immarg, i32 immarg, i32 immarg)")
        # To the second cache: the first is small, and what is read meanwhile would push it out.
        self.line(f"call void @{name}(ptr {address.name}, i32 {int(to_write)}, i32 2, i32 1)")

    def as_bool(self, byte: Value) -> Value:
        """Bools from the bytes that hold them in memory."""
        return self.icmp("ne", byte, self.const_like(0, byte))

    def _as_memory(self, value: Value) -> Value:
        return self.cast(value, "uint8") if value.dtype == "bool" else value

    def lane_mask(self, count: Value, lanes: int) -> Value:
        """A bool vector whose first `count` lanes hold; `count` is a scalar integer, at least 0."""
        if lanes == 1:
            return self.icmp("sgt", count, self.const_like(0, count))
        # 32-bit lanes compare in the fewest instructions; the clamp keeps huge counts from wrapping.
        fewer = self.minimum(count, self.const_like(lanes, count))
        return self.icmp("ult", self.iota("int32", lanes), self.splat(self.cast(fewer, "int32"), lanes))

    def masked_load(
        self,
        address: Value,
        dtype: str,
        mask: Value,
        align: int | None = None,
        otherwise: Value | None = None,
    ) -> Value:
        """Neighboring elements where the mask holds; `otherwise`, or zeros, where memory is left alone."""
        lanes, size = mask.lanes, self._align(dtype, align)
        if lanes == 1:
            rest = otherwise or self.const(0, dtype)
            return self.branch(mask, lambda: [self.load(address, dtype, 1, align)], lambda: [rest])[0]
        inner = "uint8" if dtype == "bool" else dtype
        rest = self._as_memory(otherwise) if otherwise is not None else self.const(0, inner, lanes)
        name = f"llvm.masked.load.{mangled(rest)}.p0"
        kind = type_of(rest)
        self.declare(name, f"declare {kind} @{name}(ptr, i32 immarg, <{lanes} x i1>, {kind})")
        args = f"ptr {address.name}, i32 {size}, {type_of(mask)} {mask.name}, {kind} {rest.name}"
        got = self.fresh(f"call {kind} @{name}({args})", inner, lanes)
        return self.as_bool(got) if dtype == "bool" else got

    def masked_store(self, value: Value, address: Value, mask: Value, align: int | None = None) -> None:
        """Write neighboring elements where the mask holds and nothing elsewhere."""
        size = self._align(value.dtype, align)
        if value.lanes == 1:
            self.branch(mask, lambda: self.store(value, address, align))
            return
        held = self._as_memory(value)
        kind = type_of(held)
        name = f"llvm.masked.store.{mangled(held)}.p0"
        self.declare(name, f"declare void @{name}({kind}, ptr, i32 immarg, {type_of(mask)})")
        args = f"{kind} {held.name}, ptr {address.name}, i32 {size}, {type_of(mask)} {mask.name}"
        self.line(f"call void @{name}({args})")

    def gather(
        self,
        addresses: Value,
        dtype: str,
        mask: Value | None = None,
        otherwise: Value | None = None,
        align: int | None = None,
    ) -> Value:
        """One element from each address; masked lanes give `otherwise`, or zero, without touching memory."""
        lanes = addresses.lanes
        if lanes == 1:
            if mask is None:
                return self.load(addresses, dtype, 1, align)
            return self.masked_load(addresses, dtype, mask, align, otherwise)
        inner = "uint8" if dtype == "bool" else dtype
        held = mask or self.const(True, "bool", lanes)
        rest = self._as_memory(otherwise) if otherwise is not None else self.const(0, inner, lanes)
        kind, pointers = type_of(rest), llvm_type("ptr", lanes)
        name = f"llvm.masked.gather.{mangled(rest)}.v{lanes}p0"
        self.declare(name, f"declare {kind} @{name}({pointers}, i32 immarg, <{lanes} x i1>, {kind})")
        args = f"{pointers} {addresses.name}, i32 {self._align(dtype, align)}, {type_of(held)} {held.name}, "
        got = self.fresh(f"call {kind} @{name}({args}{kind} {rest.name})", inner, lanes)
        return self.as_bool(got) if dtype == "bool" else got

    def scatter(self, value: Value, addresses: Value, mask: Value | None = None) -> None:
        """Write one element to each address, lane 0 first, so that the last of equal addresses stays."""
        lanes = addresses.lanes
        if lanes == 1:
            if mask is None:
                self.store(value, addresses)
            else:
                self.masked_store(value, addresses, mask)
            return
        held = self._as_memory(value)
        chosen = mask or self.const(True, "bool", lanes)
        kind, pointers = type_of(held), llvm_type("ptr", lanes)
        name = f"llvm.masked.scatter.{mangled(held)}.v{lanes}p0"
        self.declare(name, f"declare void @{name}({kind}, {pointers}, i32 immarg, <{lanes} x i1>)")
        args = f"{kind} {held.name}, {pointers} {addresses.name}, i32 {self._align(value.dtype, None)}, "
        self.line(f"call void @{name}({args}{type_of(chosen)} {chosen.name})")
