"""The distinct kernels of one module, by what they compute."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import MappingProxyType

from graphkb.codegen.builder import Builder
from graphkb.codegen.gemm import Gemm
from graphkb.codegen.loops import Affine, Buffer, For, Kernel, Load, NativeKernel, Store, Var, affine
from graphkb.codegen.lower import lower
from graphkb.codegen.packed_weights import Reads
from graphkb.codegen.parallel import parallelize
from graphkb.codegen.parts import Joined
from graphkb.codegen.target import Target
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.types import TensorType


class Kernels:
    """The distinct kernels of one module: equal ones are compiled once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.by_signature: dict[str, NativeKernel] = {}
        self._lowered: dict[Hashable, NativeKernel] = {}
        self._callers: set[str] = set()

    def of(
        self, node: Node, often: bool = False, packed: Mapping[int, Reads] = MappingProxyType({}), alone: bool = False
    ) -> NativeKernel:
        """The kernel of a fused node, with the function's name that equal kernels share.

        Args:
            often: whether it runs again and again at once, so that threads are awake when it does.
            packed: how it may read operands, by their positions.
            alone: whether one thread runs it while others run the same.
        """
        body = node.attrs["body"]
        key = (often, alone, *sorted(packed.items()), _structure(body))
        kernel = self._lowered.get(key)
        if kernel is None:
            kernel = lower(body, _kernel_name(body), self.target)
            if isinstance(kernel, (Gemm, Joined)):
                kernel = kernel.not_shared() if alone else kernel.shared_while_awake() if often else kernel
                kernel = kernel.reading(packed)
            kernel = self._lowered[key] = self._share(kernel)
        return kernel

    def copy(self, type: TensorType) -> NativeKernel:
        """The kernel that copies a value."""
        source, target = (Buffer(i, n, type.dtype, type.size, bool(i)) for i, n in enumerate(("in0", "out")))
        var = Var("i0", type.size)
        lanes = max(1, self.target.lanes(type.dtype)) * 2
        store = Store(target, affine(var), Load(source, affine(var)))
        body = For(var, (store,), lanes) if type.size != 1 else Store(target, Affine(), Load(source, Affine()))
        return self._share(Kernel("copy", (source, target), parallelize((body,), self.target)))

    def _share(self, kernel: NativeKernel) -> NativeKernel:
        signature = kernel.signature
        known = self.by_signature.get(signature)
        if known is None:
            known = self.by_signature[signature] = kernel.renamed(f"{kernel.name}.{len(self.by_signature)}")
        return known

    @property
    def loops(self) -> str:
        """The kernels in the loop language."""
        return "\n".join(str(k) for k in self.by_signature.values())

    def emit(self, b: Builder) -> None:
        """Append the function of every kernel."""
        for kernel in self.by_signature.values():
            kernel.emit(b)

    def emit_call(self, b: Builder, kernel: NativeKernel) -> None:
        """Append `void call.name(ptr args, ptr scratch)`, which runs one kernel of known sizes."""
        name = f"call.{kernel.name}"
        if name in self._callers:
            return
        self._callers.add(name)
        with b.function(name, [("args", "ptr"), ("scratch", "ptr")]) as (args, scratch):
            pointers = [b.load(b.gep(args, i, "ptr"), "ptr") for i in range(len(kernel.buffers))]
            pointers += [scratch] if kernel.scratch != 0 else []
            operands = ", ".join(f"ptr {p.name}" for p in pointers)
            b.line(f"call void @{kernel.name}({operands})")
            b.ret()

    def scratch(self, kernel: NativeKernel) -> int:
        """The bytes of working memory that a kernel of known sizes needs."""
        assert isinstance(kernel.scratch, int)
        return kernel.scratch


def _structure(body: Graph) -> Hashable:
    """What two bodies must have in common to become the same kernel: ops, attributes, types and wiring."""
    position = {node: i for i, node in enumerate(body.nodes)}
    rows = [
        (
            node.op,
            () if node.op.name == "placeholder" else tuple(node.attrs.values()),
            tuple([position[i] for i in node.inputs]),
            node.type,
        )
        for node in body.nodes
    ]
    return (*rows, *[position[node] for node in (*body.inputs, *body.outputs)])


def _kernel_name(body: Graph) -> str:
    """A short name from the ops of a kernel, the last one first: `relu_add_dot`."""
    names = [n.op.name for n in reversed(body.nodes) if n.op.kind not in ("leaf", "view")]
    distinct = list(dict.fromkeys(names)) or [body.outputs[0].op.name]
    return "_".join(distinct[:4])
