"""Dimensions: plain integers, or exact symbolic expressions over the unknown sizes of placeholders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, Union


class Symbol:
    """One unknown size, compared by identity; the name is for people."""

    __slots__ = ("__weakref__", "name")

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Apply:
    """An atom that is not a polynomial: floor division, maximum, minimum or the broadcast of sizes.

    All but the division compare without regard to the order of their arguments, which is kept for printing.
    """

    __slots__ = ("_hash", "_key", "args", "fn")

    def __init__(self, fn: str, args: tuple[Dim, ...]) -> None:
        self.fn = fn
        self.args = args
        self._key = (fn, args if fn == "floordiv" else frozenset(args))
        self._hash = hash(self._key)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Apply) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Apply], tuple[str, tuple[Dim, ...]]]:
        return Apply, (self.fn, self.args)  # the hash rests on identities and is made anew

    def __repr__(self) -> str:
        return _show_atom(self, {})


Atom: TypeAlias = Symbol | Apply
# A monomial maps atoms to powers; the empty one is the constant term.
Monomial: TypeAlias = frozenset[tuple[Atom, int]]
ONE: Monomial = frozenset()


class Expr:
    """A polynomial over atoms with integer coefficients, in canonical form, so equal ones compare equal.

    It is never a constant: every operation returns a plain `int` when no atom is left.
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: frozenset[tuple[Monomial, int]]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expr) and self.terms == other.terms)

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Expr], tuple[frozenset[tuple[Monomial, int]]]]:
        return Expr, (self.terms,)

    def __repr__(self) -> str:
        return show_dim(self)

    def __add__(self, other: Dim) -> Dim:
        terms = dict(self.terms)
        for monomial, factor in _terms(other):
            terms[monomial] = terms.get(monomial, 0) + factor
        return _build(terms)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return (-self) + other

    def __mul__(self, other: Dim) -> Dim:
        terms: dict[Monomial, int] = {}
        for a, p in self.terms:
            for b, q in _terms(other):
                powers = dict(a)
                for atom, power in b:
                    powers[atom] = powers.get(atom, 0) + power
                product = frozenset(powers.items())
                terms[product] = terms.get(product, 0) + p * q
        return _build(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return self - floordiv(self, other) * other


Dim: TypeAlias = Union[int, Expr]  # noqa: UP007 - evaluated while Expr is being defined by older tools
Shape: TypeAlias = tuple[Dim, ...]


def symbol(name: str) -> Expr:
    """A fresh unknown size."""
    return Expr(frozenset({(frozenset({(Symbol(name), 1)}), 1)}))


def _atom(atom: Atom) -> Expr:
    return Expr(frozenset({(frozenset({(atom, 1)}), 1)}))


def _terms(dim: Dim) -> Iterable[tuple[Monomial, int]]:
    return dim.terms if isinstance(dim, Expr) else ((ONE, int(dim)),)


def _build(terms: dict[Monomial, int]) -> Dim:
    kept = {m: c for m, c in terms.items() if c}
    if not kept:
        return 0
    if len(kept) == 1 and ONE in kept:
        return kept[ONE]
    return Expr(frozenset(kept.items()))


def floordiv(a: Dim, b: Dim) -> Dim:
    """a // b; the terms that divide exactly leave it as a polynomial, the rest becomes one atom.

    The divisor is taken not to be 0, so n * m // n is m and 0 // n is 0.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    if a == b:
        return 1
    divisor = list(_terms(b))
    exact: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for m, c in _terms(a):
        quotient = _divide_term(m, c, *divisor[0]) if len(divisor) == 1 else None
        if quotient is None:
            rest[m] = c
        else:
            exact[quotient[0]] = quotient[1]
    whole, remainder = _build(exact), _build(rest)
    if isinstance(remainder, int) and (remainder == 0 or isinstance(b, int)):
        return whole if remainder == 0 else whole + remainder // b
    return whole + _atom(Apply("floordiv", (remainder, b)))


def _divide_term(monomial: Monomial, factor: int, by: Monomial, divisor: int) -> tuple[Monomial, int] | None:
    """The quotient of two terms, None where a remainder is left."""
    powers = dict(monomial)
    for atom, power in by:
        powers[atom] = powers.get(atom, 0) - power
    if factor % divisor or min(powers.values(), default=0) < 0:
        return None
    return frozenset((k, v) for k, v in powers.items() if v), factor // divisor


def _extremum(fn: str, pick: Callable[[Iterable[int]], int], dims: tuple[Dim, ...]) -> Dim:
    constants = [d for d in dims if isinstance(d, int)]
    parts: list[Dim] = list(dict.fromkeys(d for d in dims if not isinstance(d, int)))
    if constants:
        bound = pick(constants)
        if not parts:
            return bound
        if bound <= 0 and all(_nonnegative(d) for d in parts):
            if fn == "min":
                return bound
        else:
            parts.append(bound)
    return parts[0] if len(parts) == 1 else _atom(Apply(fn, tuple(parts)))


def _nonnegative(dim: Dim) -> bool:
    """Sizes are never negative, so a polynomial with positive coefficients is not either."""
    return all(c >= 0 and all(_atom_nonnegative(a) for a, _ in m) for m, c in _terms(dim))


def _atom_nonnegative(atom: Atom) -> bool:
    if isinstance(atom, Symbol):
        return True
    if atom.fn == "max":
        return any(_nonnegative(a) for a in atom.args)
    return all(_nonnegative(a) for a in atom.args)


def maximum(*dims: Dim) -> Dim:
    """The larger of the dims; max(n, 0) is n, since sizes are not negative."""
    return _extremum("max", max, dims)


def minimum(*dims: Dim) -> Dim:
    """The smaller of the dims."""
    return _extremum("min", min, dims)


def broadcast_dim(a: Dim, b: Dim) -> Dim | None:
    """The size of two axes broadcast together, None when they can never fit.

    It is exact: an unknown size meeting a known one other than 1 is that one; two different unknown sizes give
    an atom that is resolved, or refused, when both are known.
    """
    if a == b:
        return a
    if a == 1:
        return b
    if b == 1:
        return a
    if isinstance(a, int) and isinstance(b, int):
        return None
    if isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    parts = dict.fromkeys(_broadcast_parts(a) + _broadcast_parts(b))
    return _atom(Apply("broadcast", tuple(parts)))


def _broadcast_parts(dim: Dim) -> tuple[Dim, ...]:
    atom = sole_atom(dim)
    return atom.args if isinstance(atom, Apply) and atom.fn == "broadcast" else (dim,)


def sole_atom(dim: Dim) -> Atom | None:
    """The atom that a dim consists of, None for an integer or a compound expression."""
    if isinstance(dim, Expr) and len(dim.terms) == 1:
        ((monomial, factor),) = dim.terms
        if factor == 1 and len(monomial) == 1:
            ((atom, power),) = monomial
            if power == 1:
                return atom
    return None


def substitute(dim: Dim, bindings: Mapping[Symbol, Dim]) -> Dim:
    """The dim with symbols replaced; ValueError when two sizes that must broadcast do not."""
    if not isinstance(dim, Expr):
        return dim
    total: Dim = 0
    for monomial, factor in dim.terms:
        product: Dim = factor
        for atom, power in monomial:
            value = _substitute_atom(atom, bindings)
            for _ in range(power):
                product = product * value
        total = total + product
    return total


def _substitute_atom(atom: Atom, bindings: Mapping[Symbol, Dim]) -> Dim:
    if isinstance(atom, Symbol):
        bound = bindings.get(atom)
        return _atom(atom) if bound is None else bound
    args = [substitute(a, bindings) for a in atom.args]
    match atom.fn:
        case "floordiv":
            if args[1] == 0:
                raise ValueError(f"the size {atom!r} divides by a size that is 0")
            return floordiv(args[0], args[1])
        case "max":
            return maximum(*args)
        case "min":
            return minimum(*args)
        case "broadcast":
            result: Dim | None = args[0]
            for arg in args[1:]:
                assert result is not None
                previous, result = result, broadcast_dim(result, arg)
                if result is None:
                    raise ValueError(f"sizes {previous} and {arg} do not broadcast")
            assert result is not None
            return result
        case other:
            raise AssertionError(f"unknown dim function {other}")


def free_symbols(dim: Dim) -> set[Symbol]:
    """The symbols that a dim depends on."""
    found: set[Symbol] = set()
    stack = [dim]
    while stack:
        for monomial, _ in _terms(stack.pop()):
            for atom, _ in monomial:
                if isinstance(atom, Symbol):
                    found.add(atom)
                else:
                    stack.extend(atom.args)
    return found


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes; 1 for none."""
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def is_static(shape: Shape) -> bool:
    """Whether every dim is an integer."""
    return all(isinstance(d, int) for d in shape)


def keras_shape(shape: Shape) -> tuple[int | None, ...]:
    """The shape as Keras shows it: unknown sizes are None."""
    return tuple(d if isinstance(d, int) else None for d in shape)


def show_shape(shape: Shape) -> str:
    """The shape as an error shows it: `(None, 4)`."""
    return str(keras_shape(shape))


def show_dim(dim: Dim, names: Mapping[Symbol, str] | None = None) -> str:
    """The dim as it prints, its symbols under other names where `names` has some."""
    if not isinstance(dim, Expr):
        return str(dim)
    known = names or {}
    rows = [(_show_monomial(monomial, known), factor) for monomial, factor in dim.terms]
    parts = []
    for text, factor in sorted(rows, key=lambda row: (not row[0], row[0])):
        if not text:
            text = str(abs(factor))
        elif abs(factor) != 1:
            text = f"{abs(factor)}*{text}"
        parts.append(("- " if factor < 0 else "+ ") + text)
    joined = " ".join(parts)
    return joined[2:] if joined.startswith("+ ") else "-" + joined[2:]


def _show_monomial(monomial: Monomial, names: Mapping[Symbol, str]) -> str:
    return "*".join(sorted(_show_atom(a, names) + ("" if p == 1 else f"**{p}") for a, p in monomial))


def _show_atom(atom: Atom, names: Mapping[Symbol, str]) -> str:
    if isinstance(atom, Symbol):
        return names.get(atom, atom.name)
    args = [show_dim(a, names) for a in atom.args]
    if atom.fn == "floordiv":
        shown = [a if isinstance(d, int) or sole_atom(d) else f"({a})" for a, d in zip(args, atom.args)]
        return f"({' // '.join(shown)})"
    return f"{atom.fn}({', '.join(args)})"
