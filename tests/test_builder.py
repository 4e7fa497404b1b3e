"""The LLVM text builder against NumPy: constants, casts, arithmetic, division, memory, loops and reductions."""

import ctypes
import itertools
import math
import struct
from collections.abc import Callable

import numpy as np
import pytest
from native_kernels import LEVELS, elementwise, level

from graphkb.codegen.builder import Builder, Value, literal
from graphkb.codegen.engine import compile_module, emit_object
from graphkb.codegen.target import TARGETS, Target, host_target, named_target

FLOATS = ["float16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES = [*FLOATS, *INTEGERS, "bool"]


def sample(dtype: str, count: int = 203, seed: int = 0) -> np.ndarray:
    """Ordinary and extreme numbers of a dtype."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, count).astype(bool)
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        edges = [info.min, info.min + 1, info.max, info.max - 1, 0, 1, 2, 3, 7, 100]
        edges += [-1, -2, -3] if info.min else []
        spread = rng.integers(info.min, info.max, count - len(edges), dtype=dtype, endpoint=True)
        shift = rng.integers(0, info.bits, spread.size).astype(dtype)
        return np.concatenate([np.array(edges, dtype), spread >> shift])
    with np.errstate(over="ignore"):
        info = np.finfo(dtype)
        edges = [0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, info.max, -info.max]
        edges += [info.tiny, info.smallest_subnormal, -info.smallest_subnormal, 2.0**31, -(2.0**31), 2.0**32]
        edges += [
            2.0**63,
            -(2.0**63),
            2.0**64,
            127.9,
            128,
            255.5,
            256,
            -129,
            65504,
            65519.996,
            65520,
            3e9,
            1e19,
        ]
        scale = 2.0 ** rng.uniform(-30, 70, count - len(edges))
        return np.concatenate([edges, rng.standard_normal(count - len(edges)) * scale]).astype(dtype)


def same(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bits, but any NaN equals any other."""
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    if got.dtype.kind == "f":
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(expected[numbers]))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("source", DTYPES)
def test_cast_is_astype(source: str, name: str) -> None:
    x = sample(source)
    for to in DTYPES:
        kernel = elementwise(lambda b, v, to=to: b.cast(v, to), [source], to, level(name), lanes=8)
        with np.errstate(all="ignore"):
            # One by one: beyond uint32 NumPy's loops give other values for long arrays than for short ones.
            expected = np.array([v.astype(to) for v in x.reshape(-1, 1)]).ravel()
        same(kernel(x), expected)


@pytest.mark.parametrize("name", LEVELS)
def test_every_float16_widens_and_every_rounding_to_float16_is_right(name: str) -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    for wide in ("float32", "float64"):
        up = elementwise(lambda b, v, wide=wide: b.cast(v, wide), ["float16"], wide, level(name))
        same(up(every), every.astype(wide))
        down = elementwise(lambda b, v: b.cast(v, "float16"), [wide], "float16", level(name))
        finite = every[np.isfinite(every)].astype(wide)
        halfway = (finite + np.roll(finite, 1)) / 2
        points = np.concatenate([np.nextafter(halfway, -np.inf), halfway, np.nextafter(halfway, np.inf)])
        with np.errstate(over="ignore"):
            same(down(points), points.astype(np.float16))


def test_literals_are_exact_and_checked() -> None:
    assert literal(0.1, "float32") == "0x3FB99999A0000000"
    assert literal(math.inf, "float64") == "0x7FF0000000000000"
    assert literal(1e39, "float32") == "0x7FF0000000000000"
    assert literal(True, "bool") == "true"
    with pytest.raises(OverflowError, match="300 does not fit uint8"):
        literal(300, "uint8")


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_float_arithmetic_is_numpys(dtype: str, name: str) -> None:
    x = sample(dtype)
    a, c = (v.ravel() for v in np.meshgrid(x[::2], np.roll(x, 5)[::3]))
    binary = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "fdiv": np.divide, "copysign": np.copysign,
        "fmod": np.fmod, "remainder": np.remainder, "floor_divide": np.floor_divide,
    }  # fmt: skip
    unary = {
        "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
        "rint": np.rint, "sign": np.sign,
    }  # fmt: skip
    with np.errstate(all="ignore"):
        for method, function in binary.items():
            kernel = elementwise(
                lambda b, v, w, method=method: getattr(b, method)(v, w), [dtype] * 2, dtype, level(name)
            )
            same(kernel(a, c), function(a, c))
        for method, function in unary.items():
            kernel = elementwise(lambda b, v, method=method: getattr(b, method)(v), [dtype], dtype, level(name))
            same(kernel(x), function(x))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fmod_is_exact_for_far_exponents(dtype: str, name: str) -> None:
    rng = np.random.default_rng(5)
    bits = 32 if dtype == "float32" else 64
    pair = [rng.integers(0, 2**bits - 1, 3000, dtype=f"uint{bits}").view(dtype) for _ in range(2)]
    kernel = elementwise(lambda b, v, w: b.fmod(v, w), [dtype] * 2, dtype, level(name))
    with np.errstate(all="ignore"):
        same(kernel(*pair), np.fmod(*pair))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_integer_arithmetic_is_numpys(dtype: str, name: str) -> None:
    x = sample(dtype)
    a, c = (v.ravel() for v in np.meshgrid(x[::2], np.roll(x, 5)[::3]))
    methods = {"add": np.add, "mul": np.multiply, "maximum": np.maximum, "minimum": np.minimum}
    if dtype != "bool":
        methods |= {
            "sub": np.subtract,
            "floor_divide": np.floor_divide,
            "remainder": np.remainder,
            "fmod": np.fmod,
        }
        methods |= {"and_": np.bitwise_and, "or_": np.bitwise_or, "xor": np.bitwise_xor}
        methods |= {"shl": np.left_shift, "shift_right": np.right_shift}
    for method, function in methods.items():
        second = c
        if method in ("shl", "shift_right"):
            second = c & np.array(127 if dtype != "int8" else 63, dtype)
        kernel = elementwise(lambda b, v, w, method=method: getattr(b, method)(v, w), [dtype] * 2, dtype, level(name))
        with np.errstate(all="ignore"):
            same(kernel(a, second), function(a, second))
    if dtype != "bool":
        for method, function in {
            "abs": np.abs,
            "neg": np.negative,
            "sign": np.sign,
            "not_": np.invert,
        }.items():
            kernel = elementwise(lambda b, v, method=method: getattr(b, method)(v), [dtype], dtype, level(name))
            same(kernel(x), function(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_comparisons_are_numpys(dtype: str) -> None:
    x = sample(dtype)
    a, c = (v.ravel() for v in np.meshgrid(x[::2], x[::3]))
    functions = {
        "eq": np.equal, "ne": np.not_equal, "lt": np.less,
        "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    }  # fmt: skip
    for order, function in functions.items():
        kernel = elementwise(lambda b, v, w, order=order: b.compare(order, v, w), [dtype] * 2, "bool")
        same(kernel(a, c), function(a, c))


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_extrema_treat_nan_as_numpy_does(dtype: str, name: str) -> None:
    x = sample(dtype)
    a, c = (v.ravel() for v in np.meshgrid(x[::2], x[::3]))
    functions = {"minimum": np.minimum, "maximum": np.maximum, "fmin": np.fmin, "fmax": np.fmax}
    for method, function in functions.items():
        kernel = elementwise(lambda b, v, w, method=method: getattr(b, method)(v, w), [dtype] * 2, dtype, level(name))
        np.testing.assert_array_equal(kernel(a, c), function(a, c))


def test_fma_rounds_once_where_the_machine_can() -> None:
    x = np.float32(1 + 2**-12)
    arrays = [np.full(5, v, np.float32) for v in (x, x, -1)]
    kernel = elementwise(lambda b, *v: b.fma(*v), ["float32"] * 3, "float32")
    once = np.float32(float(x) * float(x) - 1)
    expected = once if host_target().has_fma else x * x - np.float32(1)
    np.testing.assert_array_equal(kernel(*arrays), expected)


def run_once(target: Target, params: list[str], write: object, *arguments: object) -> None:
    """Compile and call a function whose body is `write(b, *params)`."""
    compiled(target, params, write)(*arguments)


def compiled(target: Target, params: list[str], write: object) -> Callable[..., None]:
    """A function of arrays and integers whose body is `write(b, *params)`."""
    b = Builder(target)
    with b.function("f", [(f"p{i}", d) for i, d in enumerate(params)]) as values:
        write(b, *values)  # type: ignore[operator]
        b.ret()
    engine = compile_module(b.module(), target)
    kinds = [ctypes.c_void_p if d == "ptr" else ctypes.c_int64 for d in params]
    native = ctypes.CFUNCTYPE(None, *kinds)(engine.address("f"))

    def call(*arguments: object, engine: object = engine) -> None:
        native(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))

    return call


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lanes", [1, 3, 16])
def test_masked_memory_touches_only_its_lanes(dtype: str, lanes: int, name: str) -> None:
    def write(b: Builder, source: Value, to: Value, n: Value) -> None:
        mask = b.lane_mask(n, lanes)
        b.masked_store(b.masked_load(source, dtype, mask), to, mask)

    kernel = compiled(level(name), ["ptr", "ptr", "int64"], write)
    for count in range(lanes + 1):
        x, y = sample(dtype, 100)[:lanes].copy(), sample(dtype, 100, seed=1)[:lanes].copy()
        expected = np.concatenate([x[:count], y[count:]])
        kernel(x, y, count)
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "bool"])
def test_gather_and_scatter_follow_the_indices(dtype: str, name: str) -> None:
    x = sample(dtype, 64)
    index = np.array([5, 5, 0, 63, 17, 2, 9, 40], np.int64)
    gathered, scattered = np.zeros(8, dtype), np.zeros(64, dtype)

    def write(b: Builder, source: Value, at: Value, to: Value, spread: Value) -> None:
        where = b.load(at, "int64", 8)
        picked = b.gather(b.gep(source, where, dtype), dtype)
        b.store(picked, to)
        mask = b.compare("ne", where, b.const(63, "int64", 8))
        b.scatter(picked, b.gep(spread, where, dtype), mask)

    run_once(level(name), ["ptr"] * 4, write, x, index, gathered, scattered)
    np.testing.assert_array_equal(gathered, x[index])
    expected = np.zeros(64, dtype)
    kept = index[index != 63]
    expected[kept] = x[kept]
    np.testing.assert_array_equal(scattered, expected)


@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 16, 32])
def test_reductions_combine_every_lane(lanes: int) -> None:
    for dtype in ("float32", "float64", "int32", "uint8"):
        x = np.arange(1, lanes + 1).astype(dtype)
        out = np.zeros(4, dtype)

        def write(b: Builder, source: Value, to: Value, dtype: str = dtype) -> None:
            v = b.load(source, dtype, lanes)
            for i, total in enumerate([b.reduce(v, f) for f in (b.add, b.mul, b.minimum, b.maximum)]):
                b.store(total, b.gep(to, i, dtype))

        run_once(host_target(), ["ptr", "ptr"], write, x, out)
        product = np.multiply.reduce(x, dtype=dtype)
        np.testing.assert_allclose(out[1], product, rtol=1e-5)
        assert [out[0], out[2], out[3]] == [x.sum(dtype=dtype), 1, lanes]


def test_any_lane_sees_all_lanes() -> None:
    for bits in itertools.product([False, True], repeat=3):
        x, out = np.array(bits), np.zeros(1, bool)

        def write(b: Builder, source: Value, to: Value) -> None:
            b.store(b.any_lane(b.load(source, "bool", 3)), to)

        run_once(host_target(), ["ptr", "ptr"], write, x, out)
        assert out.tolist() == [any(bits)]


def test_loops_nest_and_carry_values() -> None:
    out = np.zeros(2, np.int64)

    def write(b: Builder, to: Value, n: Value) -> None:
        zero = b.const(0, "int64")

        def outer(i: Value, total: Value) -> list[Value]:
            return b.loop(zero, i, 1, lambda j, inner: [b.iadd(inner, b.imul(i, j))], [total])

        (total,) = b.loop(zero, n, 1, outer, [zero])
        b.store(total, to)
        # The Collatz path of 27 has 111 steps.
        two, one = b.const(2, "int64"), b.const(1, "int64")

        def step(value: Value, count: Value) -> list[Value]:
            odd = b.compare("ne", b.remainder(value, two), zero)
            (following,) = b.branch(
                odd,
                lambda: [b.iadd(b.imul(value, b.const(3, "int64")), one)],
                lambda: [b.sdiv(value, two)],
            )
            return [following, b.iadd(count, one)]

        _, count = b.repeat(lambda v, _: b.compare("ne", v, one), step, [b.const(27, "int64"), zero])
        b.store(count, b.gep(to, 1, "int64"))

    run_once(host_target(), ["ptr", "int64"], write, out, 6)
    assert out.tolist() == [sum(i * j for i in range(6) for j in range(i)), 111]


def test_shuffles_pick_lanes() -> None:
    out = np.zeros(8, np.int32)

    def write(b: Builder, to: Value) -> None:
        low, high = b.iota("int32", 4), b.const_vector([10, 11, 12, 13], "int32")
        b.store(b.concat(b.shuffle(low, high, [0, 4, 1, 5]), b.splat(b.extract(high, 3), 4)), to)

    run_once(host_target(), ["ptr"], write, out)
    assert out.tolist() == [0, 10, 1, 11, 13, 13, 13, 13]


def test_function_must_be_closed_before_the_next() -> None:
    b = Builder(TARGETS["x86-64"])
    with (
        pytest.raises(ValueError, match="function g: the function before it is still open"),
        b.function("f", []),
        b.function("g", []),
    ):
        pass


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_compiles_without_libraries(name: str) -> None:
    target = named_target(name)
    b = Builder(target)
    with b.function("f", [("x", "ptr"), ("n", "int64")]) as (x, n):

        def body(i: Value) -> None:
            for dtype in ("float16", "float32", "float64"):
                v = b.load(b.gep(x, i, dtype), dtype, 8)
                w = b.fma(v, b.sqrt(v), b.rint(v))
                w = b.fmod(b.remainder(w, v), b.floor_divide(v, b.ceil(w)))
                for to in DTYPES:
                    b.store(b.cast(w, to), b.gep(x, i, to))
            whole = b.load(b.gep(x, i, "int32"), "int32", 8)
            b.store(b.floor_divide(whole, b.remainder(whole, b.iota("int32", 8))), x)

        b.loop(b.const(0, "int64"), n, 8, body)
        b.ret()
    assert undefined_symbols(emit_object(b.module(), target)) == []


def undefined_symbols(data: bytes) -> list[str]:
    """The functions that an object file expects from elsewhere."""
    return wasm_imports(data) if data[:4] == b"\0asm" else elf_undefined(data)


def elf_undefined(data: bytes) -> list[str]:
    """The global symbols of a 64-bit ELF file that have no section."""
    header = struct.unpack_from("<16xHHIQQQIHHHHHH", data)
    section_offset, entry, count = header[5], header[10], header[11]
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, section_offset + i * entry) for i in range(count)]
    names = []
    for section in sections:
        if section[1] != 2:  # the symbol table
            continue
        strings = sections[section[6]][4]
        for at in range(section[4] + 24, section[4] + section[5], 24):
            name, info, _, place = struct.unpack_from("<IBBH", data, at)
            if place == 0 and info >> 4:  # global and undefined
                end = data.index(b"\0", strings + name)
                names.append(data[strings + name : end].decode())
    return names


def wasm_imports(data: bytes) -> list[str]:
    """The functions in the import section of a WebAssembly file."""
    at = 8

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def text() -> str:
        nonlocal at
        size = number()
        at += size
        return data[at - size : at].decode()

    while at < len(data):
        section, size = number(), number()
        if section != 2:
            at += size
            continue
        functions = []
        for _ in range(number()):
            _, name, kind = text(), text(), number()
            if kind == 0:
                functions.append(name)
                number()
            else:  # a memory or table with its limits, or a global
                if kind == 1:
                    number()
                flags = number()
                if kind < 3:
                    number()
                if kind == 3 or flags & 1:
                    number()
        return functions
    return []


def test_the_finder_of_undefined_symbols_finds_them() -> None:
    text = "declare double @sin(double)\ndefine double @f(double %x) {\n  %y = call double @sin(double %x)\n"
    text += "  ret double %y\n}"
    for name in ("x86-64", "wasm32"):
        module = f'target triple = "{TARGETS[name].triple}"\n{text}'
        assert undefined_symbols(emit_object(module, TARGETS[name])) == ["sin"]
