"""The pass that computes only those places of a convolution that somebody reads."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from graphkb.ir.dims import Dim
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ops.conv import CONV, conv, reach
from graphkb.ops.shape import SLICE, slice_


@record
class CropConvolutions:
    """slice(conv(x, k)) -> conv(slice(x), k), where nothing else reads the convolution.

    The gradient of a padded convolution is one: what belongs to the padding is cut off. Rules can not see that there is
    one reader only; with several that overlap, each would compute its part anew.
    """

    name: ClassVar[str] = "crop_convolutions"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op is SLICE and node.inputs[0].op is CONV for node in graph.nodes):
            return graph
        users, roots = graph.consumers(), set(graph.roots)
        new: dict[Node, Node] = {}
        for node in graph.nodes:
            whole = node.inputs[0] if node.op is SLICE else node
            cropped = None
            if whole.op is CONV and whole is not node and len(users[whole]) == 1 and whole not in roots:
                previous = set_override(node.origin)
                cropped = _crop(node, whole, *[new[i] for i in whole.inputs])
                set_override(previous)
            new[node] = remake(node, tuple([new[i] for i in node.inputs])) if cropped is None else cropped
        return replace(graph.with_roots([new[root] for root in graph.roots]), _order=None)


def _crop(node: Node, whole: Node, x: Node, kernel: Node) -> Node | None:
    """What a slice takes of a convolution; None where places are not known, or other axes than theirs are cut."""
    strides, dilations = whole.attrs["strides"], whole.attrs["dilations"]
    cut, n = node.attrs, len(strides)
    spatial = range(1, n + 1)
    for axis, size in enumerate(whole.shape):
        if axis not in spatial and (cut["starts"][axis], cut["sizes"][axis], cut["steps"][axis]) != (0, size, 1):
            return None
    starts: list[Dim] = [0] * x.ndim
    sizes = list(x.shape)
    for axis, stride, dilation in zip(spatial, strides, dilations):
        start, count, step, taps = cut["starts"][axis], cut["sizes"][axis], cut["steps"][axis], kernel.shape[axis - 1]
        if not (isinstance(start, int) and isinstance(count, int) and isinstance(taps, int)) or count == 0 or step < 1:
            return None
        starts[axis] = start * stride
        sizes[axis] = (count - 1) * step * stride + reach(taps, dilation)
    every = tuple([stride * cut["steps"][axis] for axis, stride in zip(spatial, strides)])
    return conv(slice_(x, tuple(starts), tuple(sizes)), kernel, every, dilations)


__all__ = ["CropConvolutions"]
