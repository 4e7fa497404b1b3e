"""Records: frozen dataclasses that are made in a quarter of the time.

A program has more than a hundred of them, and `dataclass` compiles six methods for each from text, which together
takes as long as importing half of NumPy. Here `__init__` alone is compiled, since it runs often, and the others are
closures over the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")


@overload
def record(cls: type[T], /) -> type[T]: ...
@overload
def record(*, eq: bool = True, repr: bool = True, slots: bool = False) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T] | None = None, /, *, eq: bool = True, repr: bool = True, slots: bool = False) -> Any:
    """The same as `dataclass(frozen=True, ...)` with these arguments.

    `dataclasses.fields` and `replace` take its instances. What a class or its fields say themselves holds: methods that
    stand in its body, `__post_init__`, and of `field` all but `hash` and `init`.

    Args:
        eq: whether instances with equal fields are equal, and have equal hashes; else identity counts.
        repr: whether instances show their fields.
        slots: whether instances have slots instead of a dictionary.
    """
    return _make(cls, eq, repr, slots) if cls is not None else lambda cls: _make(cls, eq, repr, slots)


def _make(cls: type[T], eq: bool, shows: bool, slots: bool) -> type[T]:
    own = frozenset(vars(cls))
    made: Any = dataclass(init=False, repr=False, eq=False, slots=slots)(cls)
    known = fields(made)
    methods: dict[str, Any] = {"__setattr__": _refuse_setting, "__delattr__": _refuse_deleting}
    if slots:
        methods |= {"__getstate__": _get_state, "__setstate__": _set_state}
    if eq:
        methods |= _comparing([f.name for f in known if f.compare])
    if shows:
        methods["__repr__"] = _showing([f.name for f in known if f.repr])
    methods["__init__"] = _initializing(made.__qualname__, known, hasattr(made, "__post_init__"))
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    return made  # type: ignore[no-any-return]


def _initializing(owner: str, known: tuple[Field[Any], ...], more: bool) -> Any:
    """`__init__`, compiled from text: the way of all instances."""
    names: dict[str, Any] = {"_set": object.__setattr__, "_missing": MISSING}
    positional: list[str] = []
    keywords: list[str] = []
    lines: list[str] = []
    for f in known:
        default, value = "", f.name
        if f.default_factory is not MISSING:
            names[f"_make_{f.name}"] = f.default_factory
            default, value = "=_missing", f"_make_{f.name}() if {f.name} is _missing else {f.name}"
        elif f.default is not MISSING:
            names[f"_default_{f.name}"] = f.default
            default = f"=_default_{f.name}"
        (keywords if f.kw_only else positional).append(f.name + default)
        lines.append(f" _set(self, {f.name!r}, {value})\n")
    if more:
        lines.append(" self.__post_init__()\n")
    taken = ", ".join(["self", *positional, *(["*", *keywords] if keywords else [])])
    exec(f"def __init__({taken}):\n{''.join(lines) or ' pass'}", names)
    made = names["__init__"]
    made.__qualname__ = f"{owner}.__init__"
    return made


def _comparing(names: list[str]) -> dict[str, Any]:
    """`__eq__` and `__hash__` over some fields."""
    values: Callable[[Any], Any] = attrgetter(*names) if names else lambda self: ()

    def compare(self: Any, other: object) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    return {"__eq__": compare, "__hash__": lambda self: hash(values(self))}


def _showing(names: list[str]) -> Any:
    """`__repr__` of some fields."""

    def show(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join([f'{name}={getattr(self, name)!r}' for name in names])})"

    return show


def _refuse_setting(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deleting(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _get_state(self: Any) -> list[Any]:
    """What pickles and copies hold of an instance with slots."""
    return [getattr(self, f.name) for f in fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for f, value in zip(fields(self), state):
        object.__setattr__(self, f.name, value)
