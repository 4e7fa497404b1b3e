"""Takes a module of LLVM text apart, so that several threads can generate the code of its functions at once.

The text is what `Builder.module` writes: a function begins with a line `define …{` and ends with the first line that is
`}`. What only the module knew is `hidden` in the parts: they reach it as directly as one module does, so every function
gets the code that it would have there.
"""

import re
from collections.abc import Iterable, Sequence
from struct import Struct

_FUNCTION = re.compile(r"^define [^\n]*\{\n.*?^\}\n", re.MULTILINE | re.DOTALL)
_HEAD = re.compile(r"define (?:internal )?(?P<rest>[^@\n]*(?P<name>@[\w.$]+)\(.*)\{$")
_VARIABLE = re.compile(
    r"(?P<name>@[\w.$]+) = (?:internal|private) (?:unnamed_addr )?(?P<kind>global|constant) "
    r"(?P<type>\[[^\[\]]*\]|\w+) (?:c\"[^\"]*\"|\w+)(?P<align>, align \d+)?"
)
_NAME = re.compile(r"@[\w.$]+")

_SHORTEST = 12_000
"""A part with less text than this is not worth a thread."""

_MARK = b"graphkb objects\n"
_LENGTH = Struct("<Q")


def split_module(text: str, most: int) -> list[str]:
    """Modules of about equal length that together define what one does; at most so many.

    A short one stays whole, and so does one that holds more than functions, declarations and plain variables.
    """
    count = min(most, len(text) // _SHORTEST)
    functions = _FUNCTION.findall(text) if count > 1 else []
    rest = _FUNCTION.sub("", text).splitlines() if functions else []
    heads = [_HEAD.match(function.partition("\n")[0]) for function in functions]
    variables = [_VARIABLE.fullmatch(line) for line in rest if line.startswith("@")]
    if len(functions) < 2 or None in heads or None in variables:
        return [text]
    lengths = [len(function) for function in functions]
    shares = _share(lengths, count)
    if min(sum(lengths[i] for i in members) for members in shares) < _SHORTEST // 2:
        return [text]  # one function is nearly all of it
    common = [line for line in rest if not line.startswith("@")]
    parts = []
    for number, members in enumerate(shares):
        own = [functions[i] for i in members]
        used = set(_NAME.findall("".join(own)))
        named = [
            _variable(found, number == 0) for found in variables if found and (number == 0 or found["name"] in used)
        ]
        called = [head for i, head in enumerate(heads) if head and head["name"] in used and i not in members]
        declared = [f"declare {_hidden(head)}" for head in called]
        parts.append("\n".join([*common, *named, *declared, *map(_visible, own)]))
    return parts


def _share(lengths: Sequence[int], count: int) -> list[list[int]]:
    """The places of about equal total length: the longest first, each to whom has least so far."""
    members: list[list[int]] = [[] for _ in range(count)]
    totals = [0] * count
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        least = totals.index(min(totals))
        members[least].append(i)
        totals[least] += lengths[i]
    return [sorted(chosen) for chosen in members if chosen]


def _hidden(head: re.Match[str]) -> str:
    return f"hidden {head['rest']}"


def _visible(function: str) -> str:
    """A function that other parts may call; exported ones are as they were."""
    internal = "define internal "
    return f"define hidden {function[len(internal) :]}" if function.startswith(internal) else function


def _variable(found: re.Match[str], defined: bool) -> str:
    name, kind, align = found["name"], found["kind"], found["align"] or ""
    if not defined:
        return f"{name} = external hidden {kind} {found['type']}{align}"
    return re.sub(r"= (?:internal|private) (?:unnamed_addr )?", "= hidden ", found[0], count=1)


def join_objects(objects: Sequence[bytes]) -> bytes:
    """Object files as one string of bytes; one alone is as it is."""
    if len(objects) == 1:
        return objects[0]
    return _MARK + b"".join(_LENGTH.pack(len(data)) + data for data in objects)


def split_objects(data: bytes) -> list[bytes]:
    """The object files that `join_objects` joined.

    Raises:
        ValueError: the lengths do not fit.
    """
    if not data.startswith(_MARK):
        return [data]
    return list(_cut(data, len(_MARK)))


def _cut(data: bytes, start: int) -> Iterable[bytes]:
    while start < len(data):
        if start + _LENGTH.size > len(data):
            raise ValueError("object files: a length is cut off")
        end = start + _LENGTH.size + _LENGTH.unpack_from(data, start)[0]
        if end > len(data):
            raise ValueError("object files: one of them is cut off")
        yield data[start + _LENGTH.size : end]
        start = end
