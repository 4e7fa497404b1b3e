"""Views and moves: reshape, transpose, broadcast, slice, pad and concatenate compose, cancel and pass broadcasts."""

from __future__ import annotations

from graphkb.ir.dims import Dim, Shape
from graphkb.ir.node import Node, make
from graphkb.ops import reduce as reductions
from graphkb.ops import shape as sh
from graphkb.ops.leaf import constant
from graphkb.passes.patterns import full, is_negative_zero, scalar
from graphkb.passes.rewrite import of_kind, rule

# Longer concatenations are not merged: a chain of n of them would cost n squared.
LONGEST = 64


def is_exact(node: Node) -> bool:
    """Whether a broadcast is certain to repeat only axes of size 1, whatever the unknown sizes are."""
    (x,) = node.inputs
    return all(a == b or a == 1 for a, b in zip(reversed(x.shape), reversed(node.shape)))


def aligned(x: Node, ndim: int) -> Node:
    """`x` with leading axes of size 1 up to a rank."""
    return sh.reshape(x, (1,) * (ndim - x.ndim) + x.shape)


def _without_ones(shape: Shape) -> tuple[Dim, ...]:
    return tuple([d for d in shape if d != 1])


# ---------------------------------------------------------------------------------------------- broadcast
@rule("constant")
def uniform_constant(node: Node) -> Node | None:
    """[c, c, c] -> broadcast_to(c)"""
    array = node.attrs["value"].array
    if not array.ndim or not array.size:
        return None
    flat = array.reshape(-1)
    bits = flat.view(f"u{flat.itemsize}")
    if bits[0] != bits[-1] or not (bits == bits[0]).all():
        return None
    return sh.broadcast_to(constant(flat[0]), node.shape)


@rule(*of_kind("elementwise"))
def pull_broadcast(node: Node) -> Node | None:
    """f(broadcast_to(x), y) -> f(x, y), or broadcast_to(f(x, y)) where that has fewer elements"""
    for each in node.inputs:
        if each.op is sh.BROADCAST_TO:
            break
    else:
        return None
    inputs = tuple([i.inputs[0] if i.op is sh.BROADCAST_TO and is_exact(i) else i for i in node.inputs])
    if inputs == node.inputs:
        return None
    return sh.broadcast_to(make(node.op, inputs, node.attrs), node.shape)


@rule("broadcast_to")
def broadcast_nothing(node: Node) -> Node | None:
    """broadcast_to(x, its own shape) -> x"""
    (x,) = node.inputs
    return x if x.shape == node.shape else None


@rule("broadcast_to")
def broadcast_broadcast(node: Node) -> Node | None:
    """broadcast_to(broadcast_to(x)) -> broadcast_to(x)"""
    (x,) = node.inputs
    return sh.broadcast_to(x.inputs[0], node.shape) if x.op is sh.BROADCAST_TO and is_exact(x) else None


@rule("broadcast_to")
def broadcast_reshape(node: Node) -> Node | None:
    """broadcast_to(reshape(x)) -> broadcast_to(x) where the reshape adds leading axes of size 1"""
    base = _without_leading_ones(node.inputs[0])
    return sh.broadcast_to(base, node.shape) if base is not node.inputs[0] else None


@rule("broadcast_like")
def broadcast_like_known(node: Node) -> Node | None:
    """broadcast_like(x, y) -> broadcast_to(x, the shape)"""
    return sh.broadcast_to(node.inputs[0], node.shape)


@rule("unbroadcast")
def unbroadcast_known(node: Node) -> Node | None:
    """unbroadcast(g, x) -> g, or the sum over the axes along which x has size 1"""
    g, x = node.inputs
    extra = g.ndim - x.ndim
    axes = list(range(extra))
    for axis, dim in enumerate(x.shape):
        if dim == g.shape[axis + extra]:
            continue
        if dim != 1:
            return None  # whether the axis was repeated is known only at the call
        axes.append(axis + extra)
    if not axes:
        return g
    return sh.reshape(reductions.reduce_sum(g, tuple(axes), keepdims=not extra), x.shape)


# ---------------------------------------------------------------------------------------------- reshape
@rule("reshape")
def reshape_nothing(node: Node) -> Node | None:
    """reshape(x, its own shape) -> x"""
    (x,) = node.inputs
    return x if x.shape == node.shape else None


@rule("reshape")
def reshape_reshape(node: Node) -> Node | None:
    """reshape(reshape(x)) -> reshape(x)"""
    (x,) = node.inputs
    return sh.reshape(x.inputs[0], node.shape) if x.op is sh.RESHAPE else None


@rule("reshape")
def reshape_broadcast(node: Node) -> Node | None:
    """reshape(broadcast_to(x)) -> broadcast_to(reshape(x)) where x has one element, or only axes of size 1 move"""
    (x,) = node.inputs
    if x.op is not sh.BROADCAST_TO or not is_exact(x):
        return None
    base = x.inputs[0]
    if all(d == 1 for d in base.shape):
        return sh.broadcast_to(sh.reshape(base, ()), node.shape)
    if _without_ones(x.shape) != _without_ones(node.shape):
        return None
    dims = iter([d for d, whole in zip(aligned(base, x.ndim).shape, x.shape) if whole != 1])
    return sh.broadcast_to(sh.reshape(base, tuple([1 if d == 1 else next(dims) for d in node.shape])), node.shape)


def is_squeeze(node: Node) -> bool:
    """Whether a node is a reshape that only adds or removes axes of size 1."""
    return node.op is sh.RESHAPE and _without_ones(node.inputs[0].shape) == _without_ones(node.shape)


@rule(*of_kind("elementwise"))
def pull_reshape(node: Node) -> Node | None:
    """f(reshape(x)) -> reshape(f(x)) where only axes of size 1 move, beside scalars and operands reshaped alike"""
    # A reduction and its keepdims form then share what follows, too.
    base = None
    for each in node.inputs:
        if not each.type.shape:
            continue
        if not is_squeeze(each) or each.shape != node.shape or (base is not None and each.inputs[0].shape != base):
            return None
        base = each.inputs[0].shape
    if base is None:
        return None
    inputs = tuple([i.inputs[0] if i.type.shape else i for i in node.inputs])
    return sh.reshape(make(node.op, inputs, node.attrs), node.shape)


@rule(*of_kind("elementwise"))
def drop_leading_ones(node: Node) -> Node | None:
    """f(x, reshape(y)) -> f(x, y) where the reshape adds leading axes of size 1"""
    for each in node.inputs:
        if each.op is sh.RESHAPE:
            break
    else:
        return None
    inputs = tuple([_without_leading_ones(i) for i in node.inputs])
    if inputs == node.inputs or max(i.ndim for i in inputs) < node.ndim:
        return None
    return make(node.op, inputs, node.attrs)


def _without_leading_ones(x: Node) -> Node:
    if x.op is sh.RESHAPE:
        base = x.inputs[0]
        extra = x.ndim - base.ndim
        if extra > 0 and x.shape[extra:] == base.shape and all(d == 1 for d in x.shape[:extra]):
            return base
    return x


# ---------------------------------------------------------------------------------------------- transpose
@rule("transpose")
def transpose_transpose(node: Node) -> Node | None:
    """transpose(transpose(x)) -> transpose(x), or x"""
    (x,) = node.inputs
    if x.op is not sh.TRANSPOSE:
        return None
    inner = x.attrs["axes"]
    return sh.transpose(x.inputs[0], tuple([inner[a] for a in node.attrs["axes"]]))


@rule("transpose")
def transpose_ones(node: Node) -> Node | None:
    """transpose(x) -> reshape(x) where only axes of size 1 move"""
    (x,) = node.inputs
    moving = [a for a in node.attrs["axes"] if x.shape[a] != 1]
    return sh.reshape(x, node.shape) if moving == sorted(moving) else None


@rule("transpose")
def transpose_broadcast(node: Node) -> Node | None:
    """transpose(broadcast_to(x)) -> broadcast_to(transpose(x))"""
    (x,) = node.inputs
    if x.op is not sh.BROADCAST_TO or not is_exact(x):
        return None
    return sh.broadcast_to(sh.transpose(aligned(x.inputs[0], x.ndim), node.attrs["axes"]), node.shape)


# ---------------------------------------------------------------------------------------------- slice
@rule("slice")
def slice_all(node: Node) -> Node | None:
    """slice(x, everything) -> x"""
    (x,) = node.inputs
    attrs = node.attrs
    whole = x.shape == node.shape and all(s == 0 for s in attrs["starts"]) and all(s == 1 for s in attrs["steps"])
    return x if whole else None


@rule("slice")
def slice_slice(node: Node) -> Node | None:
    """slice(slice(x)) -> slice(x)"""
    (x,) = node.inputs
    if x.op is not sh.SLICE:
        return None
    # Element i of the outer slice is element start + i * step of the inner one.
    outer, inner = node.attrs, x.attrs
    starts = tuple([a + b * s for a, b, s in zip(inner["starts"], outer["starts"], inner["steps"])])
    steps = tuple([s * t for s, t in zip(inner["steps"], outer["steps"])])
    return sh.slice_(x.inputs[0], starts, outer["sizes"], steps)


@rule("slice")
def slice_broadcast(node: Node) -> Node | None:
    """slice(broadcast_to(x)) -> broadcast_to(slice(x))"""
    (x,) = node.inputs
    if x.op is not sh.BROADCAST_TO or not is_exact(x):
        return None
    base = x.inputs[0]
    extra = x.ndim - base.ndim
    starts, sizes, steps = [], [], []
    for axis, dim in enumerate(base.shape):
        repeated = dim != x.shape[axis + extra]
        starts.append(0 if repeated else node.attrs["starts"][axis + extra])
        sizes.append(1 if repeated else node.attrs["sizes"][axis + extra])
        steps.append(1 if repeated else node.attrs["steps"][axis + extra])
    return sh.broadcast_to(sh.slice_(base, tuple(starts), tuple(sizes), tuple(steps)), node.shape)


@rule("slice")
def slice_concatenate(node: Node) -> Node | None:
    """slice(concatenate(x, y)) -> slice(x) where only elements of x are taken"""
    (x,) = node.inputs
    if x.op is not sh.CONCATENATE:
        return None
    axis = x.attrs["axis"]
    start, size, step = (node.attrs[k][axis] for k in ("starts", "sizes", "steps"))
    offset: Dim = 0
    for part in x.inputs:
        length = part.shape[axis]
        if _lies_within(start - offset, size, step, length):
            starts = tuple([start - offset if a == axis else s for a, s in enumerate(node.attrs["starts"])])
            # Along other axes the operands may know their sizes less well than the whole does.
            if all(p == w for a, (p, w) in enumerate(zip(part.shape, x.shape)) if a != axis):
                return sh.slice_(part, starts, node.attrs["sizes"], node.attrs["steps"])
        offset = offset + length
    return None


def _lies_within(start: Dim, size: Dim, step: int, length: Dim) -> bool:
    if start == 0 and size == length and step == 1:
        return True
    if not (isinstance(start, int) and isinstance(size, int) and isinstance(length, int)) or size == 0:
        return False
    return 0 <= start < length and 0 <= start + (size - 1) * step < length


@rule("slice")
def slice_pad(node: Node) -> Node | None:
    """slice(pad(x)) -> pad(x) where the slice cuts off zeros only, or takes just what was padded"""
    (x,) = node.inputs
    if x.op is not sh.PAD:
        return None
    (base,), cut, around = x.inputs, node.attrs, x.attrs
    if node.shape == base.shape and cut["starts"] == around["starts"] and cut["steps"] == around["steps"]:
        return base
    before = []
    for n, start, apart, first, size, step in zip(
        base.shape, around["starts"], around["steps"], cut["starts"], cut["sizes"], cut["steps"]
    ):
        gap = start - first
        if isinstance(n, int) and isinstance(gap, int) and isinstance(size, int) and n > 0 and step == 1:
            last = gap + (n - 1) * apart
            if not (0 <= gap < size and 0 <= last < size):
                return None
        elif (gap, size, step, apart) != (0, n, 1, 1):  # whatever n is, that is all of the axis
            return None
        before.append(gap)
    return sh.pad(base, tuple(before), around["steps"], node.shape)


# ---------------------------------------------------------------------------------------------- pad
@rule("pad")
def pad_nothing(node: Node) -> Node | None:
    """pad(x, no zeros) -> x"""
    (x,) = node.inputs
    none = (
        x.shape == node.shape and all(s == 0 for s in node.attrs["starts"]) and all(s == 1 for s in node.attrs["steps"])
    )
    return x if none else None


@rule("pad")
def pad_backwards(node: Node) -> Node | None:
    """pad(x, backwards along an axis) -> pad(reverse(x))"""
    (x,), attrs = node.inputs, node.attrs
    turned = [a for a, step in enumerate(attrs["steps"]) if step < 0]
    if not turned:
        return None
    ends = [start + (n - 1) * step for n, start, step in zip(x.shape, attrs["starts"], attrs["steps"])]
    starts = tuple([ends[a] if a in turned else start for a, start in enumerate(attrs["starts"])])
    return sh.pad(sh.reverse(x, turned), starts, tuple(map(abs, attrs["steps"])), node.shape)


@rule("pad")
def pad_pad(node: Node) -> Node | None:
    """pad(pad(x)) -> pad(x)"""
    (x,) = node.inputs
    if x.op is not sh.PAD:
        return None
    outer, inner = node.attrs, x.attrs
    starts = tuple([a + b * s for a, b, s in zip(outer["starts"], inner["starts"], outer["steps"])])
    steps = tuple([s * t for s, t in zip(outer["steps"], inner["steps"])])
    return sh.pad(x.inputs[0], starts, steps, outer["shape"])


@rule("pad")
def pad_zeros(node: Node) -> Node | None:
    """pad(zeros) -> zeros"""
    value = scalar(node.inputs[0])
    return full(0, node) if value is not None and value == 0 and not is_negative_zero(value) else None


# ---------------------------------------------------------------------------------------------- concatenate
@rule("concatenate")
def concatenate_one(node: Node) -> Node | None:
    """concatenate(x) -> x"""
    return node.inputs[0] if len(node.inputs) == 1 else None


@rule("concatenate")
def concatenate_empty(node: Node) -> Node | None:
    """concatenate(x, empty) -> x"""
    axis = node.attrs["axis"]
    full_parts = [i for i in node.inputs if i.shape[axis] != 0]
    if len(full_parts) in (0, len(node.inputs)):
        return None
    joined = sh.concatenate(full_parts, axis)
    return joined if joined.type == node.type else None


@rule("concatenate")
def concatenate_concatenate(node: Node) -> Node | None:
    """concatenate(concatenate(x, y), z) -> concatenate(x, y, z)"""
    axis = node.attrs["axis"]
    parts: list[Node] = []
    for each in node.inputs:
        if each.op is sh.CONCATENATE and each.attrs["axis"] == axis:
            parts.extend(each.inputs)
        else:
            parts.append(each)
    if len(parts) == len(node.inputs) or len(parts) > LONGEST:
        return None
    return sh.concatenate(parts, axis)


@rule("concatenate")
def concatenate_slices(node: Node) -> Node | None:
    """concatenate(x[:k], x[k:]) -> x"""
    axis = node.attrs["axis"]
    parts = [node.inputs[0]]
    for each in node.inputs[1:]:
        joined = _join_slices(parts[-1], each, axis)
        if joined is None:
            parts.append(each)
        else:
            parts[-1] = joined
    return sh.concatenate(parts, axis) if len(parts) < len(node.inputs) else None


def _join_slices(a: Node, b: Node, axis: int) -> Node | None:
    """The slice that holds two neighboring slices of one node, None where they are not that."""
    if a.op is not sh.SLICE or b.op is not sh.SLICE or a.inputs[0] is not b.inputs[0]:
        return None
    starts, steps, sizes = a.attrs["starts"], a.attrs["steps"], list(a.shape)
    if b.attrs["steps"] != steps or b.attrs["starts"][axis] != starts[axis] + sizes[axis] * steps[axis]:
        return None
    for other in range(a.ndim):
        if other != axis and (b.attrs["starts"][other] != starts[other] or b.shape[other] != sizes[other]):
            return None
    sizes[axis] = sizes[axis] + b.shape[axis]
    return make(sh.SLICE, a.inputs, {"starts": starts, "sizes": tuple(sizes), "steps": steps})


VIEWS = (
    uniform_constant,
    pull_broadcast,
    broadcast_nothing,
    broadcast_broadcast,
    broadcast_reshape,
    broadcast_like_known,
    unbroadcast_known,
    reshape_nothing,
    reshape_reshape,
    reshape_broadcast,
    pull_reshape,
    drop_leading_ones,
    transpose_transpose,
    transpose_ones,
    transpose_broadcast,
    slice_all,
    slice_slice,
    slice_broadcast,
    slice_concatenate,
    slice_pad,
    pad_nothing,
    pad_backwards,
    pad_pad,
    pad_zeros,
    concatenate_one,
    concatenate_empty,
    concatenate_concatenate,
    concatenate_slices,
)
