"""Sparse tensors and print_tensor of K: what SciPy says, without a dense matrix on the way; gradients, errors."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from k_tools import numeric_gradient
from scipy import sparse

from graphkb import backend as K
from graphkb import options
from graphkb.ir.errors import InputError, ShapeError
from graphkb.ir.graph import toposort

RNG = np.random.default_rng(0)


def matrix(shape, dtype="float64", density=0.4, kind="csr"):
    return sparse.random_array(shape, density=density, format=kind, rng=RNG, dtype=np.float64).astype(dtype)


def is_dense_nowhere(*tensors):
    """Whether no tensor is computed from a matrix that was made dense."""
    return all(node.op.name != "sparse_dense" for node in toposort([t.node for t in tensors]))


# ---------------------------------------------------------------------------------------------- making
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr"])
def test_variable(kind):
    m = matrix((4, 5), kind=kind)
    x = K.variable(m)
    assert K.is_sparse(x)
    assert (K.int_shape(x), x.shape, K.ndim(x), K.dtype(x)) == ((4, 5), (4, 5), 2, "float32")
    np.testing.assert_array_equal(K.eval(x), m.toarray().astype("float32"))
    np.testing.assert_array_equal(K.get_value(K.to_dense(x)), K.eval(x))
    assert not K.is_sparse(K.to_dense(x))


def test_entries_of_one_place_add_up():
    m = sparse.coo_array(([1.0, 2.0, 4.0], ([1, 1, 0], [2, 2, 0])), shape=(2, 3))
    assert K.eval(K.variable(m)).tolist() == [[4, 0, 0], [0, 0, 3]]
    y = K.eval(K.dot(K.variable(m), K.constant([[1.0], [1.0], [10.0]])))
    assert y.tolist() == [[4], [30]]


def test_old_spmatrix():
    m = sparse.csr_matrix(([0.0, 7.0, 2.0, 3.0], ([0, 2, 2, 3], [4, 3, 2, 3])), shape=(4, 5), dtype="float32")
    w = RNG.random((5, 4))
    np.testing.assert_allclose(K.eval(K.dot(K.variable(m), K.variable(w))), m.toarray() @ w, atol=1e-5)


def test_is_sparse_never_raises():
    for value in (K.variable(1), np.ones(3), matrix((2, 2)), None, "x", 3):
        assert K.is_sparse(value) is False


def test_dense_functions_see_the_dense_matrix():
    m = matrix((4, 5)).astype("float32")
    x = K.placeholder((None, 5), sparse=True)
    f = K.function([x], [x, K.sum(x), x + 1, K.shape(x), K.transpose(x)])
    dense = m.toarray()
    results = f([m])
    expected = [dense, dense.sum(), dense + 1, [4, 5], dense.T]
    for result, value in zip(results, expected):
        np.testing.assert_allclose(result, value, rtol=1e-6)


# ---------------------------------------------------------------------------------------------- dot
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64"])
@pytest.mark.parametrize(("m", "k", "n"), [(4, 5, 3), (1, 1, 1), (0, 5, 3), (4, 0, 3), (4, 5, 0), (17, 33, 65)])
def test_dot(m, k, n, dtype):
    a = np.rint(matrix((m, k)).toarray() * 4).astype(dtype)
    b = RNG.integers(-4, 5, (k, n)).astype(dtype)
    held = sparse.coo_array(a) if dtype != "float16" else sparse.coo_array(a.astype("float32"))
    y = K.dot(K.variable(held, dtype), K.constant(b, dtype))
    assert is_dense_nowhere(y)
    assert y.dtype == dtype
    np.testing.assert_array_equal(K.eval(y), a @ b)
    flipped = K.dot(K.constant(b.T, dtype), K.variable(held.T, dtype))
    assert is_dense_nowhere(flipped)
    np.testing.assert_array_equal(K.eval(flipped), b.T @ a.T)


@pytest.mark.parametrize(("left", "right"), [((4, 5), (5,)), ((4, 5), (2, 5, 3)), ((2, 3, 4), (4, 5)), ((4,), (4, 5))])
def test_dot_of_other_ranks(left, right):
    a, b = (matrix(s) if len(s) == 2 and s != (5,) else RNG.random(s) for s in (left, right))
    x, y = (K.variable(v, "float64") if sparse.issparse(v) else K.constant(v, "float64") for v in (a, b))
    assert K.is_sparse(x) != K.is_sparse(y)
    z = K.dot(x, y)
    assert is_dense_nowhere(z)
    a, b = (v.toarray() if sparse.issparse(v) else v for v in (a, b))
    expected = K.eval(K.dot(K.constant(a, "float64"), K.constant(b, "float64")))
    assert z.shape == expected.shape
    np.testing.assert_allclose(K.eval(z), expected, rtol=1e-12)


def test_dot_of_two_sparse_tensors():
    a, b = matrix((4, 5)), matrix((5, 3))
    y = K.dot(K.variable(a, "float64"), K.variable(b, "float64"))
    np.testing.assert_allclose(K.eval(y), (a @ b).toarray(), rtol=1e-12)


# ---------------------------------------------------------------------------------------------- placeholders
@pytest.mark.parametrize("mode", ["native", "interpret"])
@pytest.mark.parametrize("shape", [(None, 5), (4, 5), (None, None)])
def test_feeding(shape, mode):
    x = K.placeholder(shape, sparse=True, name="x")
    assert K.is_sparse(x)
    assert K.is_placeholder(x)
    assert x.shape == shape
    w = K.variable(RNG.random((5, 3)))
    y = K.relu(K.dot(x, w) - 0.5)
    assert is_dense_nowhere(y)
    assert y.shape == (shape[0], 3)
    with options(mode=mode):
        f = K.function([x], [y])
    sizes = [(4, 5)] if shape[0] else [(4, 5), (9, 5), (0, 5), (1, 5)]
    for size in sizes:
        m = matrix(size, "float32")
        expected = np.maximum(m.toarray() @ K.get_value(w) - 0.5, 0)
        for value in (m, m.tocoo(), m.toarray(), m.toarray().tolist() or np.zeros(size)):
            np.testing.assert_allclose(f([value])[0], expected, rtol=1e-5, atol=1e-6)


def test_batches_share_a_compiled_function():
    x = K.placeholder((None, 50), sparse=True)
    f = K.function([x], [K.dot(x, K.ones((50, 2)))])
    for _ in range(20):
        m = matrix((32, 50), density=RNG.uniform(0.1, 0.15))
        np.testing.assert_allclose(f([m])[0], np.repeat(m.toarray().sum(1, keepdims=True), 2, axis=1), rtol=1e-5)
    assert f.cache_info().specializations <= 2


def test_what_is_left_out_does_not_touch_infinities():
    x = K.placeholder((None, 2), sparse=True)
    w = K.constant([[np.inf, np.nan], [1.0, 2.0]])
    (y,) = K.function([x], [K.dot(x, w)])([sparse.csr_array([[0.0, 3.0], [0.0, 0.0]])])
    assert y.tolist() == [[3, 6], [0, 0]]


def test_several_inputs_and_one_output():
    x, b = K.placeholder((None, 3), sparse=True), K.placeholder((2,))
    f = K.function([x, b], K.dot(x, K.ones((3, 2))) + b)
    assert f([sparse.csr_array(np.eye(3)), [1, 2]]).tolist() == [[2, 3]] * 3
    again = pickle.loads(pickle.dumps(f))
    assert again([sparse.csr_array(np.eye(3)), [1, 2]]).tolist() == [[2, 3]] * 3


def test_dense_placeholders_take_sparse_matrices():
    x = K.placeholder((None, 5))
    m = matrix((4, 5), "float32")
    np.testing.assert_array_equal(K.function([x], [x * 2])([m])[0], m.toarray() * 2)


def test_training_on_sparse_batches():
    truth = RNG.normal(size=(20, 1))
    x, target = K.placeholder((None, 20), sparse=True), K.placeholder((None, 1))
    w = K.variable(np.zeros((20, 1)))
    loss = K.mean(K.square(K.dot(x, w) - target))
    (grad,) = K.gradients(loss, [w])
    assert is_dense_nowhere(loss, grad)
    train = K.function([x, target], [loss], updates=[K.update_sub(w, grad)])
    for _ in range(300):
        batch = matrix((32, 20))
        train([batch, batch @ truth])
    np.testing.assert_allclose(K.get_value(w), truth, atol=0.05)


# ---------------------------------------------------------------------------------------------- concatenation
@pytest.mark.parametrize(("axis", "second"), [(0, (7, 5)), (1, (4, 2)), (-1, (4, 5)), (-2, (0, 5))])
def test_concatenation(axis, second):
    a, b = matrix((4, 5)), matrix(second)
    x = K.concatenate([K.variable(a, "float64"), K.variable(b, "float32")], axis)
    assert K.is_sparse(x)
    expected = np.concatenate([a.toarray(), b.toarray().astype("float32")], axis)
    assert x.shape == expected.shape
    assert x.dtype == "float64"
    np.testing.assert_array_equal(K.eval(x), expected)
    y = K.dot(x, K.constant(np.ones((expected.shape[1], 2)), "float64"))
    assert is_dense_nowhere(y)
    np.testing.assert_allclose(K.eval(y), expected @ np.ones((expected.shape[1], 2)), rtol=1e-12)


def test_concatenation_of_inputs():
    x, y = K.placeholder((None, 3), sparse=True), K.placeholder((None, 2), sparse=True)
    z = K.concatenate([x, y])
    assert z.shape == (None, 5)
    product = K.dot(z, K.constant(np.arange(10).reshape(5, 2)))
    f = K.function([x, y], [z, product])
    a, b = matrix((6, 3), "float32"), matrix((6, 2), "float32")
    whole = np.hstack([a.toarray(), b.toarray()])
    dense, times = f([a, b])
    np.testing.assert_array_equal(dense, whole)
    np.testing.assert_allclose(times, whole @ np.arange(10).reshape(5, 2), rtol=1e-6)


def test_mixed_concatenation_is_dense():
    a, b = matrix((4, 5), "float32"), RNG.random((4, 2)).astype("float32")
    x = K.concatenate([K.variable(a), K.constant(b)])
    assert not K.is_sparse(x)
    np.testing.assert_array_equal(K.eval(x), np.hstack([a.toarray(), b]))


# ---------------------------------------------------------------------------------------------- gradients
def test_gradients():
    m = matrix((4, 5))
    weights, start = RNG.normal(size=(4, 3)), RNG.normal(size=(5, 3))
    x, w = K.variable(m, "float64"), K.variable(start, "float64")
    loss = K.sum(K.square(K.dot(x, w)) * weights)
    to_x, to_w = K.gradients(loss, [x, w])
    assert K.is_sparse(to_x)
    assert is_dense_nowhere(loss, to_w)

    def at_w(value):
        return float(np.sum((m.toarray() @ value) ** 2 * weights))

    np.testing.assert_allclose(K.eval(to_w), numeric_gradient(at_w, start), rtol=1e-6, atol=1e-6)
    full = 2 * (weights * (m.toarray() @ start)) @ start.T
    np.testing.assert_allclose(K.eval(to_x), np.where(m.toarray() != 0, full, 0), rtol=1e-12)
    # The second derivative: of the gradient's sum, again with respect to the weights.
    (second,) = K.gradients(K.sum(to_w), [w])

    def gradient_sum(value):
        return float(np.sum(2 * m.toarray().T @ (weights * (m.toarray() @ value))))

    np.testing.assert_allclose(K.eval(second), numeric_gradient(gradient_sum, start), rtol=1e-6, atol=1e-6)


def test_gradients_through_the_dense_matrix():
    m = matrix((3, 4))
    x = K.variable(m, "float64")
    (grad,) = K.gradients(K.sum(K.square(K.to_dense(x))), [x])
    np.testing.assert_allclose(K.eval(grad), 2 * m.toarray())


def test_labels_of_ctc():
    labels = K.placeholder((None, None), dtype="int32")
    lengths = K.placeholder((None,), dtype="int64")
    x = K.ctc_label_dense_to_sparse(labels, lengths)
    assert K.is_sparse(x)
    (dense,) = K.function([labels, lengths], [x])([[[3, 1, 2], [4, 9, -1]], [3, 1]])
    assert dense.tolist() == [[3, 1, 2], [4, 0, 0]]


# ---------------------------------------------------------------------------------------------- errors
def test_errors():
    x = K.placeholder((None, 5), sparse=True, name="x")
    f = K.function([x], [K.dot(x, K.ones((5, 2)))], name="f")
    with pytest.raises(InputError, match=r"x: expected shape \(None, 5\), got \(4, 6\)"):
        f([matrix((4, 6))])
    with pytest.raises(InputError, match=r"x: expected a sparse matrix, or an array of rank 2, got list of \(3,\)"):
        f([[1, 2, 3]])
    with pytest.raises(InputError, match="f: expected 1 inputs, got 2"):
        f([matrix((4, 5)), 1])
    with pytest.raises(TypeError, match="f: expected a list or tuple of 1 inputs, got csr_array"):
        f(matrix((4, 5)))
    with pytest.raises(ShapeError, match=r"dot: shapes \(None, 5\) and \(4, 2\) do not fit"):
        K.dot(x, K.ones((4, 2)))
    with pytest.raises(ValueError, match="expected two sizes of a sparse tensor"):
        K.placeholder((None, 5, 2), sparse=True)
    with pytest.raises(ShapeError, match="concatenate: shapes"):
        K.concatenate([x, K.placeholder((None, 4), sparse=True)], 0)
    with pytest.raises(TypeError, match="expected placeholders as sparse inputs"):
        K.function([K.concatenate([x, x])], [x])


def test_it_works_without_scipy():
    code = """
import sys
sys.modules["scipy"] = None
import numpy as np
from graphkb import backend as K
x = K.placeholder((None, 3), sparse=True)
w = K.variable([[1.0], [2.0], [4.0]])
f = K.function([x], [K.dot(x, w), K.gradients(K.dot(x, w), [w])[0]])
for value in f([[[0, 1, 1], [0, 0, 0]]]):
    print(value.tolist())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout.split("\n")[:2], run.stderr) == (["[[6.0], [0.0]]", "[[0.0], [1.0], [1.0]]"], "")


# ---------------------------------------------------------------------------------------------- printing
@pytest.mark.parametrize("mode", ["native", "interpret"])
def test_print_tensor(mode, capsys):
    x = K.placeholder((1, 1))
    y = K.print_tensor(x, "msg")
    with options(mode=mode):
        f = K.function([x], [y])
    for _ in range(2):
        assert f([np.ones((1, 1))])[0].tolist() == [[1]]
        assert capsys.readouterr().out == "msg [[1.]]\n"


def test_printing_follows_the_need_for_the_value(capsys):
    v = K.variable([1.0, 2.0])
    shown, unused = K.print_tensor(v * 2, "shown"), K.print_tensor(v, "unused")
    (y, grad) = K.function([], [K.sum(shown) * 3, K.gradients(K.sum(K.square(shown)), [v])[0]])([])
    assert (y, grad.tolist()) == (18, [8, 16])
    assert capsys.readouterr().out == "shown [2. 4.]\n"
    assert K.eval(K.shape(unused)).tolist() == [2]
    assert capsys.readouterr().out == ""
    assert K.eval(K.print_tensor(3)).tolist() == 3
    assert capsys.readouterr().out == " 3\n"
