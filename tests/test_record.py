"""Records behave as the frozen dataclasses that they stand for."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar

import pytest

from graphkb.ir.record import record

KINDS: dict[str, dict[str, bool]] = {
    "plain": {},
    "identity": {"eq": False},
    "silent": {"repr": False},
    "slots": {"slots": True},
    "node": {"eq": False, "repr": False, "slots": True},
}


class Point:
    """A class with every form of field."""

    kind: ClassVar[str] = "point"

    x: int
    y: tuple[int, ...] = ()
    names: list[str] = field(default_factory=list, compare=False)
    note: str = field(default="", compare=False, repr=False)
    z: int = field(default=3, kw_only=True)

    @property
    def total(self) -> int:
        return self.x + self.z


def make(decorate: Callable[..., Any]) -> Any:
    return decorate(type("Point", (), {k: v for k, v in vars(Point).items() if k not in ("__dict__", "__weakref__")}))


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same class as a record and as a dataclass."""
    arguments = KINDS[request.param]
    return make(record(**arguments)), make(dataclass(frozen=True, **arguments))


def test_instances_agree_with_those_of_dataclasses(pair: tuple[Any, Any]) -> None:
    answers: list[list[Any]] = []
    for one in pair:
        a, b, c = one(1), one(x=1, note="other"), one(1, (2,), ["n"], z=5)
        if "__repr__" in vars(one):
            answers.append([repr(a), repr(c)])
        if one.__hash__ is not object.__hash__:
            answers.append([hash(a) == hash(b), hash(a) == hash(c)])
        answers.append([a == b, a == c, a != b, a == 1, a == a, (c.x, c.y, c.names, c.note, c.z, c.total, c.kind)])
        answers.append([(f.name, f.compare, f.repr, f.kw_only) for f in fields(one)])
        answers.append([one.__match_args__, hasattr(a, "__dict__"), a.names is b.names, replace(c, x=9).total])
    half = len(answers) // 2
    assert answers[:half] == answers[half:]


def test_instances_are_frozen(pair: tuple[Any, Any]) -> None:
    messages = []
    for one in pair:
        a = one(1)
        for change in (partial(setattr, a, "x", 2), partial(delattr, a, "x")):
            with pytest.raises(FrozenInstanceError) as caught:
                change()
            messages.append(str(caught.value))
        assert a.x == 1
    assert messages[:2] == messages[2:]


@pytest.mark.parametrize("arguments", [(), (1, 2, 3, 4, 5)])
def test_wrong_arguments_have_the_same_message(pair: tuple[Any, Any], arguments: tuple[int, ...]) -> None:
    messages = []
    for one in pair:
        with pytest.raises(TypeError) as caught:
            one(*arguments)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@record(slots=True)
class Slotted:
    """A record that pickle can find."""

    a: int
    b: tuple[int, ...] = ()


@record
class Checked:
    """A record with methods of its own."""

    a: int

    def __post_init__(self) -> None:
        if self.a < 0:
            raise ValueError("a is negative")
        object.__setattr__(self, "a", self.a * 2)

    def __repr__(self) -> str:
        return "own"


@record
class Derived(Checked):
    """A record with one field more."""

    b: str = "b"


def test_copies_and_pickles() -> None:
    one = Slotted(1, (2, 3))
    assert copy.copy(one) == one
    assert copy.deepcopy(one) == one
    assert pickle.loads(pickle.dumps(one)) == one


def test_what_a_class_says_itself_holds() -> None:
    assert Checked(2).a == 4
    assert repr(Checked(2)) == "own"
    with pytest.raises(ValueError, match="negative"):
        Checked(-1)


def test_records_inherit_fields() -> None:
    one = Derived(1)
    assert (one.a, one.b) == (2, "b")
    assert one != Checked(1)
    assert one == Derived(1, "b")
    assert hash(one) == hash(Derived(1))
    assert repr(one) == "Derived(a=2, b='b')"
