"""What every rule of the simplifier makes of a node that it fits, as pairs of nodes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graphkb.ir.dims import symbol
from graphkb.ir.node import Node, make
from graphkb.ops import elementwise as ew
from graphkb.ops import index, leaf, linalg
from graphkb.ops import reduce as rd
from graphkb.ops import shape as sh
from graphkb.ops.conv import conv
from graphkb.ops.window import window_sum

N, M = symbol("n"), symbol("m")
F = leaf.placeholder((N, 4), "float32", "f")
G = leaf.placeholder((N, 4), "float32", "g")
ROW = leaf.placeholder((4,), "float32", "row")
H = leaf.placeholder((3, 4), "float16", "h")
I = leaf.placeholder((N, 4), "int32", "i")  # noqa: E741 - floats, integers, bools
J = leaf.placeholder((N, 4), "int32", "j")
B8 = leaf.placeholder((5,), "int8", "b8")
U = leaf.placeholder((N, 4), "uint8", "u")
B = leaf.placeholder((N, 4), "bool", "b")
C = leaf.placeholder((N, 4), "bool", "c")
S = leaf.placeholder((2, 3, 4), "float32", "s")
ONES = leaf.placeholder((1, 3, 1), "float32", "ones")
SCALAR = leaf.placeholder((), "float32", "scalar")

TRUE, FALSE = leaf.constant(True), leaf.constant(False)


def c(value, dtype="float32"):
    return leaf.constant(value, dtype)


def op(record, *inputs, **attrs):
    return make(record, inputs, attrs)


def full(value, like: Node) -> Node:
    return sh.broadcast_to(leaf.constant(value, like.dtype), like.shape)


def lnot(x):
    return op(ew.not_, x)


def spread(x, *shape):
    return sh.broadcast_to(x, shape)


def total(x, *axes, keepdims=False):
    return rd.reduce_sum(x, axes, keepdims)


def cat(*nodes, axis=0):
    return op(sh.CONCATENATE, *nodes, axis=axis)


def dot(x, y, cx, cy, bx=(), by=()):
    return linalg.dot(x, y, bx, by, cx, cy)


def cut(x, starts, sizes, steps=None):
    return op(sh.SLICE, x, starts=starts, sizes=sizes, steps=steps or (1,) * x.ndim)


A3, A2 = leaf.placeholder((N, 3, 4), "float32", "a3"), leaf.placeholder((4, N), "float32", "a2")
B3 = leaf.placeholder((N, 4, 5), "float32", "b3")
P, Q = leaf.placeholder((N, 2), "float32", "p"), leaf.placeholder((N, 5), "float32", "q")
E1 = leaf.placeholder((M, 1), "float32", "e1")
LINE, IMAGE = leaf.placeholder((3,), "float32", "line"), leaf.placeholder((1, 3, 1), "float32", "image")
KERNEL = leaf.placeholder((2, 1, 1), "float32", "kernel")

# rule name -> pairs (before, after); each is rewritten by that rule and constant folding alone.
CASES: dict[str, list[tuple[Callable[[], Node], Callable[[], Node]]]] = {
    # ------------------------------------------------------------------------------------------ constants
    "fold": [
        (lambda: c(2) * c(3) + c(1), lambda: c(7)),
        (lambda: ew.exp(c(0, "float16")), lambda: c(1, "float16")),
        (lambda: c(127, "int8") + c(1, "int8"), lambda: c(-128, "int8")),
        (lambda: sh.reshape(c([1, 2, 3, 4]), (2, 2)), lambda: c([[1, 2], [3, 4]])),
        (lambda: total(c([1, 2, 3]), 0), lambda: c(6)),
        (lambda: op(rd.ARGMAX, c([1, 5, 2]), axis=0), lambda: c(1, "int64")),
        (lambda: index.gather(c([5, 6, 7]), c(1, "int32")), lambda: c(6)),
        (lambda: ew.cast(c([0, 2.5]), "bool"), lambda: leaf.constant([False, True])),
    ],
    "fold_size": [(lambda: op(leaf.SIZE, dim=7, dtype="int64"), lambda: c(7, "int64"))],
    # ------------------------------------------------------------------------------------------ views
    "uniform_constant": [
        (lambda: c(np.full((2, 3), 7)), lambda: spread(c(7), 2, 3)),
        (lambda: c([[-0.0]]), lambda: spread(c(-0.0), 1, 1)),
        (lambda: leaf.constant([True, True]), lambda: spread(TRUE, 2)),
    ],
    "pull_broadcast": [
        (lambda: F + spread(ROW, N, 4), lambda: F + ROW),
        (lambda: ew.exp(spread(ROW, N, 4)), lambda: spread(ew.exp(ROW), N, 4)),
        (lambda: spread(c(3), N, 4) * spread(ROW, N, 4), lambda: spread(c(3) * ROW, N, 4)),
        (lambda: ew.cast(spread(ROW, N, 4), "int32"), lambda: spread(ew.cast(ROW, "int32"), N, 4)),
        (
            lambda: ew.select(spread(ew.greater(SCALAR, 0), N, 4), F, spread(ROW, N, 4)),
            lambda: ew.select(ew.greater(SCALAR, 0), F, ROW),
        ),
    ],
    "broadcast_nothing": [(lambda: op(sh.BROADCAST_TO, F, shape=(N, 4)), lambda: F)],
    "broadcast_broadcast": [(lambda: spread(spread(ROW, 3, 4), 2, 3, 4), lambda: spread(ROW, 2, 3, 4))],
    "broadcast_reshape": [(lambda: spread(sh.reshape(ROW, (1, 1, 4)), 2, N, 4), lambda: spread(ROW, 2, N, 4))],
    "broadcast_like_known": [(lambda: ew.broadcast_like(ROW, F), lambda: spread(ROW, N, 4))],
    "unbroadcast_known": [
        (lambda: op(ew.UNBROADCAST, F, G), lambda: F),
        (lambda: ew.unbroadcast(F, ROW), lambda: total(F, 0)),
        (lambda: ew.unbroadcast(S, ONES), lambda: total(S, 0, 2, keepdims=True)),
        (lambda: ew.unbroadcast(S, spread(SCALAR, 3, 1)), lambda: sh.reshape(total(S, 0, 2), (3, 1))),
        (lambda: ew.unbroadcast(F, SCALAR), lambda: total(F, 0, 1)),
    ],
    "reshape_nothing": [(lambda: op(sh.RESHAPE, F, shape=(N, 4)), lambda: F)],
    "reshape_reshape": [
        (lambda: op(sh.RESHAPE, sh.reshape(F, (N, 2, 2)), shape=(N * 4,)), lambda: sh.reshape(F, (N * 4,))),
        (lambda: op(sh.RESHAPE, sh.reshape(F, (N, 2, 2)), shape=(N, 4)), lambda: F),
    ],
    "reshape_broadcast": [
        (lambda: sh.reshape(spread(SCALAR, N, 4), (N * 4,)), lambda: spread(SCALAR, N * 4)),
        (lambda: sh.reshape(spread(ROW, N, 4), (N, 1, 4)), lambda: spread(sh.reshape(ROW, (1, 1, 4)), N, 1, 4)),
        (
            lambda: sh.reshape(spread(ONES, 2, 3, 4), (2, 3, 1, 4)),
            lambda: spread(sh.reshape(ONES, (1, 3, 1, 1)), 2, 3, 1, 4),
        ),
    ],
    "pull_reshape": [
        (lambda: ew.exp(sh.reshape(F, (N, 1, 4))), lambda: sh.reshape(ew.exp(F), (N, 1, 4))),
        (lambda: sh.reshape(F, (N, 1, 4)) * SCALAR, lambda: sh.reshape(F * SCALAR, (N, 1, 4))),
        (lambda: sh.reshape(F, (N, 1, 4)) - sh.reshape(G, (N, 1, 4)), lambda: sh.reshape(F - G, (N, 1, 4))),
        (lambda: ew.cast(sh.reshape(ONES, (3,)), "int8"), lambda: sh.reshape(ew.cast(ONES, "int8"), (3,))),
    ],
    "drop_leading_ones": [
        (lambda: F + sh.reshape(ROW, (1, 4)), lambda: F + ROW),
        (lambda: ew.select(sh.reshape(ew.greater(ROW, 0), (1, 4)), 0, F), lambda: ew.select(ew.greater(ROW, 0), 0, F)),
    ],
    "transpose_transpose": [
        (lambda: sh.transpose(sh.transpose(S, (1, 2, 0)), (1, 2, 0)), lambda: sh.transpose(S, (2, 0, 1))),
        (lambda: sh.transpose(sh.transpose(S, (1, 2, 0)), (2, 0, 1)), lambda: S),
    ],
    "transpose_ones": [(lambda: sh.transpose(ONES, (1, 2, 0)), lambda: sh.reshape(ONES, (3, 1, 1)))],
    "transpose_broadcast": [
        (
            lambda: sh.transpose(spread(ROW, N, 4), (1, 0)),
            lambda: spread(sh.transpose(sh.reshape(ROW, (1, 4)), (1, 0)), 4, N),
        ),
    ],
    "slice_all": [(lambda: cut(F, (0, 0), (N, 4)), lambda: F)],
    "slice_slice": [
        (
            lambda: cut(cut(S, (0, 2, 1), (2, 2, 3), (1, -1, 1)), (1, 1, 0), (1, 1, 2), (1, -1, 2)),
            lambda: cut(S, (1, 1, 1), (1, 1, 2), (1, 1, 2)),
        ),
        (lambda: sh.reverse(sh.reverse(F, (0,)), (0,)), lambda: F),
    ],
    "slice_broadcast": [
        (lambda: cut(spread(ROW, N + 3, 4), (1, 2), (2, 2)), lambda: spread(cut(ROW, (2,), (2,)), 2, 2)),
        (
            lambda: cut(spread(ONES, 2, 3, 4), (0, 1, 3), (1, 2, 2), (1, 1, -1)),
            lambda: spread(cut(ONES, (0, 1, 0), (1, 2, 1)), 1, 2, 2),
        ),
    ],
    "slice_concatenate": [
        (lambda: cut(cat(P, Q, axis=1), (0, 2), (N, 5)), lambda: Q),
        (lambda: cut(cat(P, Q, axis=1), (0, 5), (N, 2), (1, -2)), lambda: cut(Q, (0, 3), (N, 2), (1, -2))),
        (lambda: cut(cat(F, G), (N, 0), (N, 4)), lambda: G),
    ],
    "slice_pad": [
        (lambda: cut(sh.pad(F, (1, 2), (1, 2), (N + 1, 9)), (1, 2), (N, 4), (1, 2)), lambda: F),
        (
            lambda: cut(sh.pad(F, (1, 2), (1, 2), (N + 1, 12)), (1, 1), (N, 9)),
            lambda: sh.pad(F, (0, 1), (1, 2), (N, 9)),
        ),
    ],
    "pad_nothing": [(lambda: op(sh.PAD, F, starts=(0, 0), steps=(1, 1), shape=(N, 4)), lambda: F)],
    "pad_backwards": [
        (
            lambda: sh.pad(S, (1, 4, 6), (1, -2, -1), (3, 5, 9)),
            lambda: sh.pad(sh.reverse(S, (1, 2)), (1, 0, 3), (1, 2, 1), (3, 5, 9)),
        ),
        (lambda: sh.pad(F, (N - 1, 0), (-1, 1), (N, 4)), lambda: sh.reverse(F, (0,))),
    ],
    "pad_pad": [
        (
            lambda: sh.pad(sh.pad(ROW, (1,), (2,), (9,)), (3,), (-1 * -2,), (30,)),
            lambda: sh.pad(ROW, (5,), (4,), (30,)),
        )
    ],
    "pad_zeros": [(lambda: sh.pad(full(0, ROW), (1,), (1,), (9,)), lambda: spread(c(0), 9))],
    "concatenate_one": [(lambda: cat(F), lambda: F)],
    "concatenate_empty": [
        (lambda: cat(P, leaf.placeholder((N, 0), "float32", "e"), Q, axis=1), lambda: cat(P, Q, axis=1))
    ],
    "concatenate_concatenate": [(lambda: cat(cat(P, Q, axis=1), P, axis=1), lambda: cat(P, Q, P, axis=1))],
    "concatenate_slices": [
        (
            lambda: cat(cut(F, (0, 1), (N, 2)), cut(F, (0, 3), (N, 1)), P, axis=1),
            lambda: cat(cut(F, (0, 1), (N, 3)), P, axis=1),
        ),
        (
            lambda: cat(cut(S, (0, 2, 0), (2, 2, 4), (1, -1, 1)), cut(S, (0, 0, 0), (2, 1, 4), (1, -1, 1)), axis=1),
            lambda: sh.reverse(S, (1,)),
        ),
    ],
    # ------------------------------------------------------------------------------------------ algebra
    "constant_last": [(lambda: 2 + F, lambda: F + 2), (lambda: ew.equal(c(1), F), lambda: ew.equal(F, 1))],
    "add_zero": [
        (lambda: I + 0, lambda: I),
        (lambda: F + c(-0.0), lambda: F),
        (lambda: ew.exp(F) + 0, lambda: ew.exp(F)),
        (lambda: (F + 1) + 0, lambda: F + 1),
        (lambda: ROW + spread(c(-0.0), N, 4), lambda: spread(ROW, N, 4)),
    ],
    "sub_zero": [
        (lambda: F - 0, lambda: F),
        (lambda: I - 0, lambda: I),
        (lambda: ew.square(F) - c(-0.0), lambda: ew.square(F)),
    ],
    "zero_sub": [(lambda: 0 - I, lambda: -I), (lambda: c(-0.0) - F, lambda: -F)],
    "sub_self": [(lambda: I - I, lambda: full(0, I))],
    "add_neg": [(lambda: F + -G, lambda: F - G), (lambda: -F + G, lambda: G - F), (lambda: I + -J, lambda: I - J)],
    "sub_neg": [(lambda: F - -G, lambda: F + G)],
    "sub_constant": [(lambda: I - 3, lambda: I + -3), (lambda: U - 3, lambda: U + 253)],
    "add_constants": [(lambda: (I + 3) + 4, lambda: I + 7), (lambda: (B8 + 100) + 100, lambda: B8 + -56)],
    "mul_constants": [(lambda: (I * 3) * 4, lambda: I * 12), (lambda: (U * 16) * 16, lambda: U * 0)],
    "neg_neg": [(lambda: op(ew.neg_, -F), lambda: F), (lambda: op(ew.neg_, -U), lambda: U)],
    "neg_sub": [(lambda: -(I - J), lambda: J - I)],
    "neg_scaled": [
        (lambda: -(F * 2), lambda: F * -2),
        (lambda: -(F / 3), lambda: F / -3),
        (lambda: -(3 / F), lambda: -3 / F),
    ],
    "pull_neg": [
        (lambda: -F * G, lambda: -(F * G)),
        (lambda: F * -G, lambda: -(F * G)),
        (lambda: -F * -G, lambda: F * G),
        (lambda: -F * 2, lambda: F * -2),
        (lambda: -F / G, lambda: -(F / G)),
        (lambda: 2 / -F, lambda: -2 / F),
        (lambda: -F / -G, lambda: F / G),
    ],
    "even_of_sign": [
        (lambda: op(ew.abs_, -F), lambda: op(ew.abs_, F)),
        (lambda: ew.square(-I), lambda: ew.square(I)),
        (lambda: ew.cos(op(ew.abs_, F)), lambda: ew.cos(F)),
        (lambda: ew.cosh(-F), lambda: ew.cosh(F)),
        (lambda: op(ew.abs_, op(ew.abs_, B8)), lambda: op(ew.abs_, B8)),
    ],
    "drop_sign": [
        (lambda: op(ew.abs_, ew.exp(F)), lambda: ew.exp(F)),
        (lambda: ew.relu(ew.sigmoid(F)), lambda: ew.sigmoid(F)),
        (lambda: op(ew.abs_, ew.cast(U, "float32")), lambda: ew.cast(U, "float32")),
        (lambda: ew.relu(U), lambda: U),
    ],
    "relu_relu": [(lambda: ew.relu(ew.relu(F)), lambda: ew.relu(F))],
    "repeated_rounding": [
        (lambda: op(ew.floor_, op(ew.round_, F)), lambda: op(ew.round_, F)),
        (lambda: ew.sign(ew.sign(I)), lambda: ew.sign(I)),
        (lambda: op(ew.ceil_, ew.cast(I, "float64")), lambda: ew.cast(I, "float64")),
    ],
    "mul_one": [(lambda: F * 1, lambda: F), (lambda: ROW * spread(c(1), N, 4), lambda: spread(ROW, N, 4))],
    "mul_minus_one": [(lambda: F * -1, lambda: -F), (lambda: I * -1, lambda: -I)],
    "mul_zero": [(lambda: I * 0, lambda: full(0, I))],
    "mul_self": [(lambda: F * F, lambda: ew.square(F)), (lambda: U * U, lambda: ew.square(U))],
    "div_one": [(lambda: F / 1, lambda: F)],
    "div_power_of_two": [(lambda: F / 4, lambda: F * 0.25), (lambda: H / -(2.0**15), lambda: H * -(2.0**-15))],
    "one_div": [(lambda: 1 / F, lambda: ew.reciprocal(F))],
    "reciprocal_sqrt": [(lambda: ew.reciprocal(ew.sqrt(F)), lambda: ew.rsqrt(F))],
    "floordiv_one": [(lambda: op(ew.floordiv, I, c(1, "int32")), lambda: I)],
    "mod_one": [(lambda: op(ew.mod, I, c(1, "int32")), lambda: full(0, I))],
    "pow_constant": [
        (lambda: ew.power(F, 0), lambda: full(1, F)),
        (lambda: ew.power(F, 1), lambda: F),
        (lambda: ew.power(F, 2), lambda: ew.square(F)),
        (lambda: ew.power(I, 3), lambda: ew.square(I) * I),
        (lambda: ew.power(F, 4), lambda: ew.square(ew.square(F))),
        (lambda: ew.power(F, -1), lambda: ew.reciprocal(F)),
    ],
    "pow_half": [
        (lambda: ew.power(ew.exp(F), 0.5), lambda: ew.sqrt(ew.exp(F))),
        (lambda: ew.power(ew.square(F), -0.5), lambda: ew.rsqrt(ew.square(F))),
    ],
    "constant_pow": [
        (lambda: ew.power(1, F), lambda: full(1, F)),
        (lambda: ew.power(2, F), lambda: op(ew.exp2_, F)),
    ],
    "extremum_self": [(lambda: ew.maximum(F, F), lambda: F), (lambda: ew.minimum(B, B), lambda: B)],
    "extremum_nested": [
        (lambda: ew.maximum(ew.maximum(F, 1), 2), lambda: ew.maximum(F, 2)),
        (lambda: ew.minimum(ew.minimum(I, 0), -3), lambda: ew.minimum(I, -3)),
    ],
    "extremum_bound": [
        (lambda: ew.maximum(F, -np.inf), lambda: F),
        (lambda: ew.minimum(np.inf, F), lambda: F),
        (lambda: ew.maximum(U, 0), lambda: U),
        (lambda: ew.minimum(B8, -128), lambda: full(-128, B8)),
        (lambda: ew.maximum(B, FALSE), lambda: B),
        (lambda: ew.minimum(B, FALSE), lambda: full(False, B)),
    ],
    "maximum_zero": [(lambda: ew.maximum(F, 0), lambda: ew.relu(F)), (lambda: ew.maximum(I, 0), lambda: ew.relu(I))],
    # ------------------------------------------------------------------------------------------ logic
    "greater_to_less": [
        (lambda: ew.greater(F, G), lambda: ew.less(G, F)),
        (lambda: ew.greater_equal(1, F), lambda: ew.less_equal(F, 1)),
    ],
    "compare_constant": [(lambda: ew.less(0, F), lambda: ew.greater(F, 0))],
    "compare_self": [
        (lambda: ew.less(F, F), lambda: spread(FALSE, N, 4)),
        (lambda: ew.equal(I, I), lambda: spread(TRUE, N, 4)),
        (lambda: ew.equal(F, F), lambda: lnot(op(ew.isnan_, F))),
        (lambda: ew.not_equal(F, F), lambda: op(ew.isnan_, F)),
        (lambda: ew.less_equal(F, F), lambda: lnot(op(ew.isnan_, F))),
    ],
    "compare_bool": [
        (lambda: ew.greater(ew.cast(B, "float32"), 0), lambda: B),
        (lambda: ew.equal(ew.cast(B, "int32"), 0), lambda: lnot(B)),
        (lambda: ew.less(ew.cast(B, "float32"), np.nan), lambda: spread(FALSE, N, 4)),
        (lambda: ew.less(ew.cast(B, "uint8"), 2), lambda: spread(TRUE, N, 4)),
        (lambda: ew.not_equal(B, TRUE), lambda: lnot(B)),
    ],
    "compare_sign": [
        (lambda: ew.less(ew.exp(F), 0), lambda: spread(FALSE, N, 4)),
        (lambda: ew.greater_equal(U, 0), lambda: spread(TRUE, N, 4)),
    ],
    "not_not": [(lambda: lnot(lnot(B)), lambda: B)],
    "not_compare": [
        (lambda: lnot(ew.equal(F, G)), lambda: ew.not_equal(F, G)),
        (lambda: lnot(ew.less(I, J)), lambda: ew.greater_equal(I, J)),
    ],
    "logic_constant": [
        (lambda: op(ew.and_, B, TRUE), lambda: B),
        (lambda: op(ew.and_, B, FALSE), lambda: full(False, B)),
        (lambda: op(ew.or_, B, FALSE), lambda: B),
        (lambda: op(ew.or_, B, TRUE), lambda: full(True, B)),
        (lambda: op(ew.xor_, B, TRUE), lambda: lnot(B)),
        (lambda: op(ew.xor_, B, FALSE), lambda: B),
    ],
    "logic_self": [
        (lambda: op(ew.and_, B, B), lambda: B),
        (lambda: op(ew.xor_, B, B), lambda: full(False, B)),
        (lambda: op(ew.and_, B, lnot(B)), lambda: full(False, B)),
        (lambda: op(ew.or_, lnot(B), B), lambda: full(True, B)),
        (lambda: op(ew.xor_, lnot(B), B), lambda: full(True, B)),
    ],
    "extremum_of_bools": [
        (lambda: ew.maximum(B, C), lambda: op(ew.or_, B, C)),
        (lambda: ew.minimum(B, C), lambda: op(ew.and_, B, C)),
    ],
    "select_constant": [
        (lambda: ew.select(TRUE, F, G), lambda: F),
        (lambda: ew.select(spread(FALSE, N, 4), F, ROW), lambda: spread(ROW, N, 4)),
    ],
    "select_same": [(lambda: ew.select(B, ROW, ROW), lambda: spread(ROW, N, 4))],
    "select_not": [(lambda: ew.select(lnot(B), F, G), lambda: ew.select(B, G, F))],
    "select_select": [
        (lambda: ew.select(B, ew.select(B, F, ROW), G), lambda: ew.select(B, F, G)),
        (lambda: ew.select(B, F, ew.select(B, G, ROW)), lambda: ew.select(B, F, ROW)),
    ],
    "select_numbers": [
        (lambda: ew.select(B, c(1), 0), lambda: ew.cast(B, "float32")),
        (lambda: ew.select(B, c(0, "int8"), 1), lambda: ew.cast(lnot(B), "int8")),
        (lambda: ew.select(B, TRUE, FALSE), lambda: B),
    ],
    "select_bools": [
        (lambda: ew.select(B, C, FALSE), lambda: op(ew.and_, B, C)),
        (lambda: ew.select(B, TRUE, C), lambda: op(ew.or_, B, C)),
    ],
    "cast_same": [(lambda: op(ew.CAST, F, dtype="float32"), lambda: F)],
    "cast_cast": [
        (lambda: ew.cast(ew.cast(B, "int8"), "float32"), lambda: ew.cast(B, "float32")),
        (lambda: ew.cast(ew.cast(F, "float64"), "float32"), lambda: F),
        (lambda: ew.cast(ew.cast(I, "int64"), "uint8"), lambda: ew.cast(I, "uint8")),
        (lambda: ew.cast(ew.cast(I, "int16"), "int8"), lambda: ew.cast(I, "int8")),
        (lambda: ew.cast(ew.cast(U, "float16"), "int16"), lambda: ew.cast(U, "int16")),
        (lambda: ew.cast(ew.cast(H, "float32"), "float64"), lambda: ew.cast(H, "float64")),
    ],
    # ------------------------------------------------------------------------------------------ reductions
    "reduce_nothing": [
        (lambda: op(rd.MAX, F, axes=(), keepdims=False), lambda: F),
        (lambda: op(rd.SUM, I, axes=(), keepdims=False), lambda: I),
    ],
    "reduce_ones": [
        (lambda: rd.reduce(rd.MAX, ONES, (0, 2)), lambda: sh.reshape(ONES, (3,))),
        (lambda: total(ONES, 0), lambda: sh.reshape(ONES + 0, (3, 1))),
        (lambda: total(ew.exp(ONES), 0, keepdims=True), lambda: ew.exp(ONES)),
    ],
    "variance_sums": [
        (
            lambda: op(rd.VARIANCE, F, axes=(0,), keepdims=False),
            lambda: total(ew.square(F - total(F, 0, keepdims=True) / leaf.size(N, F.dtype)), 0) / leaf.size(N, F.dtype),
        ),
    ],
    "argmax_ones": [(lambda: op(rd.ARGMAX, ONES, axis=2), lambda: spread(c(0, "int64"), 1, 3))],
    "cumulative_ones": [(lambda: rd.cumsum(ONES, 0), lambda: ONES), (lambda: rd.cumprod(ONES, 2), lambda: ONES)],
    "extremum_broadcast": [
        (
            lambda: rd.reduce(rd.MAX, spread(ROW, 3, 4), (0,)),
            lambda: sh.reshape(rd.reduce(rd.MAX, spread(sh.reshape(ROW, (1, 4)), 1, 4), (0,)), (4,)),
        ),
    ],
    "sum_broadcast": [
        (lambda: total(spread(ROW, 3, 4), 0, 1), lambda: total(sh.reshape(ROW, (1, 4)), 0, 1) * 3),
        (lambda: total(spread(c(2), N), 0), lambda: c(2) * leaf.size(N, "float32")),
        (lambda: total(spread(sh.reshape(B8, (5, 1)), 5, 300), 1), lambda: total(sh.reshape(B8, (5, 1)), 1) * 44),
    ],
    "reduce_reduce": [
        (lambda: rd.reduce(rd.MAX, rd.reduce(rd.MAX, S, (1,)), (1,)), lambda: rd.reduce(rd.MAX, S, (1, 2))),
        (lambda: total(total(I, 1, keepdims=True), 0), lambda: sh.reshape(total(I, 0, 1), (1,))),
        (lambda: rd.reduce(rd.ANY, rd.reduce(rd.ANY, B, (0,)), (0,)), lambda: rd.reduce(rd.ANY, B, (0, 1))),
    ],
    "reduce_transpose": [
        (lambda: total(sh.transpose(S, (2, 0, 1)), 0), lambda: total(S, 2)),
        (lambda: rd.reduce(rd.MAX, sh.transpose(S, (2, 1, 0)), (0, 1, 2)), lambda: rd.reduce(rd.MAX, S, (0, 1, 2))),
    ],
    "reduce_reshape": [(lambda: total(sh.reshape(F, (N * 4,)), 0), lambda: total(F, 0, 1))],
    "any_not": [
        (lambda: rd.reduce(rd.ANY, lnot(B), (0,)), lambda: lnot(rd.reduce(rd.ALL, B, (0,)))),
        (lambda: rd.reduce(rd.ALL, lnot(B), (1,)), lambda: lnot(rd.reduce(rd.ANY, B, (1,)))),
    ],
    # ------------------------------------------------------------------------------------------ dot products
    "dot_transpose": [
        (lambda: dot(sh.transpose(A2, (1, 0)), A2, (1,), (0,)), lambda: dot(A2, A2, (0,), (0,))),
        (lambda: dot(ROW, sh.transpose(F, (1, 0)), (0,), (0,)), lambda: dot(ROW, F, (0,), (1,))),
        (
            lambda: dot(sh.transpose(A3, (2, 0, 1)), B3, (0,), (1,), (1,), (0,)),
            lambda: dot(A3, B3, (2,), (1,), (0,), (0,)),
        ),
    ],
    "transpose_dot": [
        (lambda: sh.transpose(dot(F, A2, (1,), (0,)), (1, 0)), lambda: dot(A2, F, (0,), (1,))),
        (
            lambda: sh.transpose(dot(A3, B3, (2,), (1,), (0,), (0,)), (0, 2, 1)),
            lambda: dot(B3, A3, (1,), (2,), (0,), (0,)),
        ),
        (
            lambda: sh.transpose(dot(S, S, (), (), (0, 1), (0, 1)), (1, 0, 2, 3)),
            lambda: dot(S, S, (), (), (1, 0), (1, 0)),
        ),
    ],
    # ------------------------------------------------------------------------------------------ convolutions
    "conv_spread": [
        (
            lambda: conv(sh.pad(IMAGE, (0, 0, 0), (1, 2, 1), (1, 5, 1)), KERNEL, (1,), (1,)),
            lambda: sh.interleave(
                [
                    conv(cut(IMAGE, (0, i, 0), (1, 2, 1)), cut(KERNEL, (i, 0, 0), (1, 1, 1), (2, 1, 1)), (1,), (1,))
                    for i in (0, 1)
                ],
                (1, 2, 1),
                (1, 4, 1),
            ),
        )
    ],
    "window_sum_spread": [
        (
            lambda: window_sum(sh.pad(LINE, (0,), (2,), (5,)), (2,), (1,)),
            lambda: sh.interleave([cut(LINE, (0,), (2,)), cut(LINE, (1,), (2,))], (2,), (4,)),
        )
    ],
    # ------------------------------------------------------------------------------------------ fastmath
    "fast_add_zero": [(lambda: F + 0, lambda: F), (lambda: 0 - F, lambda: -F)],
    "fast_mul_zero": [(lambda: F * 0, lambda: full(0, F))],
    "fast_sub_self": [(lambda: F - F, lambda: full(0, F))],
    "fast_div_self": [(lambda: F / F, lambda: full(1, F))],
    "fast_sub_constant": [(lambda: F - 3, lambda: F + -3)],
    "fast_constants": [(lambda: (F + 1) + 2, lambda: F + 3), (lambda: (F * 2) * 3, lambda: F * 6)],
    "fast_div_constant": [(lambda: F / 3, lambda: F * np.float32(1 / 3))],
    "fast_pow_half": [(lambda: ew.power(F, 0.5), lambda: ew.sqrt(F))],
    "fast_div_sqrt": [(lambda: F / ew.sqrt(G), lambda: F * ew.rsqrt(G))],
    "fast_sum_sum": [(lambda: total(total(F, 1), 0), lambda: total(F, 0, 1))],
    "fast_sum_scaled": [
        (lambda: total(F * 3, 0), lambda: total(F, 0) * 3),
        (lambda: total(-F, 0), lambda: -total(F, 0)),
    ],
}
