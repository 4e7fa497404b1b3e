"""The machines that code is generated for: named instruction set levels and the detection of the host's."""

import os
from dataclasses import replace

from graphkb.ir.record import record

_ITEM_BITS = {
    "float16": 16, "float32": 32, "float64": 64,
    "int8": 8, "int16": 16, "int32": 32, "int64": 64,
    "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64,
    "bool": 8,
}  # fmt: skip


@record
class Target:
    """One instruction set level.

    Attributes:
        name: the name by which users choose it, such as "x86-64-v3".
        triple: the LLVM target triple.
        cpu: the LLVM processor that fixes the instruction set.
        features: LLVM feature string, comma separated, added to those of `cpu`.
        vector_bits: width of the native vector registers; 0 for a scalar machine.
        has_fma: whether a fused multiply-add is one instruction.
        has_masked_memory: whether loads and stores of 32- and 64-bit lanes can be masked.
        has_float16: whether float16 and float32 convert in one instruction.
        tune: the LLVM processor whose timings guide instruction scheduling; "" for the one of `cpu`.
        pointer_bits: the width of an address.
        abi: the LLVM name of the calling convention where the triple leaves it open.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bits: int
    has_fma: bool
    has_masked_memory: bool
    has_float16: bool = False
    tune: str = ""
    pointer_bits: int = 64
    abi: str = ""

    @property
    def is_x86(self) -> bool:
        """Whether instructions of the x86 family may be named."""
        return self.triple.startswith("x86_64")

    @property
    def is_avx512(self) -> bool:
        """Whether 512-bit x86 vectors with mask registers exist."""
        return self.is_x86 and self.vector_bits == 512

    def lanes(self, dtype: str) -> int:
        """The number of elements of `dtype` in one native vector register, at least 1."""
        bits = self.pointer_bits if dtype == "ptr" else _ITEM_BITS[dtype]
        return max(1, self.vector_bits // bits)

    def can_mask(self, dtype: str) -> bool:
        """Whether masked loads and stores of `dtype` are single instructions."""
        if not self.has_masked_memory:
            return False
        return self.is_avx512 or _ITEM_BITS.get(dtype, self.pointer_bits) >= 32

    def attributes(self) -> str:
        """The LLVM function attributes that select this machine inside a module."""
        items = [f'"target-cpu"="{self.cpu}"']
        if self.features:
            items.append(f'"target-features"="{self.features}"')
        if self.tune:
            items.append(f'"tune-cpu"="{self.tune}"')
        if self.is_x86:
            # LLVM otherwise cuts vectors to 256 bits on processors whose early models slowed down on 512.
            items.append(f'"prefer-vector-width"="{self.vector_bits}"')
            items.append(f'"min-legal-vector-width"="{self.vector_bits}"')
        return " ".join(items)


_LINUX = "x86_64-unknown-linux-gnu"
_ARM = "aarch64-unknown-linux-gnu"
_RISCV = "riscv64-unknown-linux-gnu"
TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("x86-64", _LINUX, "x86-64", "", 128, False, False),
        Target("x86-64-v2", _LINUX, "x86-64-v2", "", 128, False, False),
        Target("x86-64-v3", _LINUX, "x86-64-v3", "", 256, True, True, has_float16=True),
        Target("x86-64-v4", _LINUX, "x86-64-v4", "-prefer-256-bit", 512, True, True, has_float16=True),
        Target("aarch64", _ARM, "generic", "+neon", 128, True, False, has_float16=True),
        Target("riscv64", _RISCV, "generic-rv64", "+m,+a,+f,+d,+c", 0, True, False, abi="lp64d"),
        Target("wasm32", "wasm32-unknown-unknown", "generic", "+simd128", 128, False, False, pointer_bits=32),
    )
}

_X86_LEVELS = (
    ("x86-64-v4", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    ("x86-64-v3", ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")),
    ("x86-64-v2", ("cx16", "popcnt", "sahf", "sse3", "ssse3", "sse4.1", "sse4.2")),
)


def named_target(name: str) -> Target:
    """The target called `name`; "host" is the machine that runs this process.

    Raises:
        ValueError: no target has that name.
    """
    if name == "host":
        return _detect()
    if name not in TARGETS:
        known = ", ".join(["host", *TARGETS])
        raise ValueError(f"target: {name!r} is not known; expected one of {known}")
    return TARGETS[name]


def host_target(name: str = "") -> Target:
    """The target of code that runs in this process.

    Timings are those of the actual processor, instructions only those of the level.

    Args:
        name: a lower level of the same family, or "host"; by default the environment variable GRAPHKB_TARGET names it.

    Raises:
        ValueError: no target has that name, or this machine can not run its code.
    """
    name = name or os.environ.get("GRAPHKB_TARGET", "") or "host"
    chosen, host = named_target(name), _detect()
    if name == "host":
        return host
    if chosen.triple.split("-")[0] != host.triple.split("-")[0]:
        raise ValueError(f"target {name}: this machine is {host.triple} and cannot run it")
    order = list(TARGETS)
    if order.index(chosen.name) > order.index(host.name):
        raise ValueError(f"target {name}: this machine has only {host.name}")
    return replace(chosen, triple=host.triple, tune=host.tune)


_host: Target | None = None


def known_host() -> Target | None:
    """What `host_target` found out about this machine, if it has been asked."""
    return _host


def assume_host(name: str, triple: str, tune: str) -> None:
    """Take a level, triple and processor that were found out earlier for this machine's, which loads no LLVM.

    Raises:
        KeyError: no target has that name.
    """
    global _host
    _host = replace(TARGETS[name], triple=triple, tune=tune)


def _detect() -> Target:
    global _host
    if _host is None:
        _host = _examine_host()
    return _host


def _examine_host() -> Target:
    """The highest level that the processor and operating system of this process support."""
    from llvmlite import binding as llvm

    triple = str(llvm.get_process_triple())
    family = triple.split("-")[0]
    if family in ("aarch64", "arm64"):
        return replace(TARGETS["aarch64"], triple=triple, tune=_host_tune())
    if family == "riscv64":
        return replace(TARGETS["riscv64"], triple=triple)
    if family not in ("x86_64", "amd64"):
        raise ValueError(f"target: no code generation for {triple}; set GRAPHKB_MODE=interpret")
    has = dict(llvm.get_host_cpu_features())
    level = "x86-64"
    for name, needed in _X86_LEVELS:
        if all(has.get(feature, False) for feature in needed):
            level = name
            break
    return replace(TARGETS[level], triple=triple, tune=_host_tune())


def _host_tune() -> str:
    from llvmlite import binding as llvm

    name = str(llvm.get_host_cpu_name())
    return "" if name == "generic" else name
