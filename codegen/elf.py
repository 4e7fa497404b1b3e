"""Links x86-64 object files into this process, without LLVM: sections, symbols and relocations of the ELF format.

What the code generator writes is little of what the format allows. Everything else is an `UnsupportedError`, raised
before anything runs, and LLVM's own linker takes over. Names and numbers are those of the System V ABI for x86-64.
"""

import ctypes
import mmap
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from struct import Struct, error, iter_unpack, pack_into
from typing import NamedTuple

_HEADER = Struct("<4sBBBB8xHHIQQQIHHHHHH")
_SECTION = Struct("<IIQQQQIIQQ")
_SYMBOL = "<IBBHQQ"
_RELOCATION = "<QQq"

_RELOCATABLE, _X86_64 = 1, 62
_PROGBITS, _RELA, _NOBITS, _UNWIND = 1, 4, 8, 0x70000001
_PASSIVE = frozenset([0, 2, 3, 7, 0x6FFF4C03])  # nothing, symbols, strings, notes, LLVM's address significance table
_WRITE, _ALLOC, _TLS = 1, 2, 0x400
_UNDEFINED, _FIRST_RESERVED = 0, 0xFF00
_INDIRECT, _THREAD_LOCAL = 10, 6

_PAGE = mmap.PAGESIZE
_STUB = b"\xff\x25\x00\x00\x00\x00"  # jmp [rip]: to the address that follows
_STUB_BYTES = 16


class UnsupportedError(Exception):
    """This object, or this machine, is left to LLVM; the message says why."""


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class _Object(NamedTuple):
    """One object file: its bytes, sections, and the name, type, section, value and binding of each symbol."""

    data: bytes
    sections: list[_Section]
    symbols: list[tuple[str, int, int, int, int]]


class Image:
    """The linked code of object files, in memory of its own; dropping the image frees it.

    Code and constants can not be written to, variables can not be executed.

    Args:
        data: the object files, which may use what others of them define.
        known: addresses of functions that the process itself does not show by name.

    Raises:
        UnsupportedError: the file or the machine asks for more than this linker does.
    """

    def __init__(self, data: Sequence[bytes], known: Mapping[str, int] | None = None) -> None:
        if sys.platform != "linux":
            raise UnsupportedError(f"the linker is for Linux, this is {sys.platform}")
        try:
            self._link(data, known or {})
        except (error, LookupError, ValueError, OSError, AttributeError, OverflowError) as reason:
            raise UnsupportedError(f"{type(reason).__name__}: {reason}") from reason

    def get_function_address(self, name: str) -> int:
        """The address of a symbol that other modules may see; 0 where there is none."""
        return self._symbols.get(name, 0)

    def _link(self, data: Sequence[bytes], known: Mapping[str, int]) -> None:
        objects = [_read(one) for one in data]
        exported = {
            name: (number, index)
            for number, one in enumerate(objects)
            for index, (name, _, section, _, binding) in enumerate(one.symbols)
            if name and binding and section != _UNDEFINED
        }
        undefined = {name for one in objects for name, _, section, _, _ in one.symbols if section == _UNDEFINED}
        foreign = sorted(undefined.difference(exported, [""]))
        # Stubs and addresses of foreign symbols come first, then what can not be written to, then what can.
        places, fixed, total = _lay_out([one.sections for one in objects], len(foreign) * (_STUB_BYTES + 8))
        start = _map(total)
        frames: list[int] = []
        # At the end of the process nothing is freed: a thread may still run this code.
        weakref.finalize(self, _free, start, total, frames).atexit = False
        memory = memoryview((ctypes.c_char * total).from_address(start)).cast("B")
        for (number, index), offset in places.items():
            section = objects[number].sections[index]
            if section.type != _NOBITS:
                memory[offset : offset + section.size] = data[number][section.offset : section.offset + section.size]
        jumps, words = _link_foreign(foreign, known, memory), len(foreign) * _STUB_BYTES

        def place_of(number: int, index: int) -> tuple[int, bool]:
            """Where a symbol stands, from the start, a foreign one at its jump; and whether it is foreign."""
            name, kind, section, address, _ = objects[number].symbols[index]
            if kind in (_INDIRECT, _THREAD_LOCAL) or section >= _FIRST_RESERVED:
                raise UnsupportedError(f"symbol {name} is of type {kind} in section {section:#x}")
            if section != _UNDEFINED:
                return places[number, section] + address, False
            return (jumps[name], True) if name in jumps else place_of(*exported[name])

        for number, one in enumerate(objects):
            for section in one.sections:
                if section.type == _RELA and (number, section.info) in places:
                    base, end = places[number, section.info], section.offset + section.size
                    for offset, info, addend in iter_unpack(_RELOCATION, one.data[section.offset : end]):
                        target, is_foreign = place_of(number, info >> 32)
                        word = words + target // _STUB_BYTES * 8 if is_foreign else None
                        _patch(memory, start, base + offset, info & 0xFFFFFFFF, target, word, addend)
        self._symbols = {
            name: start + place_of(*place)[0]
            for name, place in exported.items()
            if (place[0], objects[place[0]].symbols[place[1]][2]) in places
        }
        _protect(start, fixed)
        for (number, index), offset in places.items():
            if objects[number].sections[index].type == _UNWIND:
                _register(start + offset, frames)


def _read(data: bytes) -> _Object:
    sections = list(_sections(data))
    return _Object(data, sections, _symbol_table(data, sections))


def _link_foreign(names: list[str], known: Mapping[str, int], memory: memoryview) -> dict[str, int]:
    """Put down a jump to each function of other modules, and a word with its address behind all jumps."""
    process = ctypes.CDLL(None)
    slots = {}
    for i, name in enumerate(names):
        address = known.get(name) or ctypes.cast(getattr(process, name), ctypes.c_void_p).value
        if not address:
            raise UnsupportedError(f"symbol {name} is at no address")
        slots[name] = i * _STUB_BYTES
        memory[slots[name] : slots[name] + len(_STUB)] = _STUB
        pack_into("<Q", memory, slots[name] + len(_STUB), address)
        pack_into("<Q", memory, len(names) * _STUB_BYTES + i * 8, address)
    return slots


def _sections(data: bytes) -> Iterator[_Section]:
    magic, wide, order, _, _, kind, machine, _, _, _, table, _, _, _, _, size, count, _ = _HEADER.unpack_from(data)
    if (magic, wide, order, kind, machine, size) != (b"\x7fELF", 2, 1, _RELOCATABLE, _X86_64, _SECTION.size):
        raise UnsupportedError("this is no ELF object file for x86-64")
    for index in range(count):
        section = _Section(*_SECTION.unpack_from(data, table + index * _SECTION.size))
        kept = section.flags & _ALLOC
        if section.type not in (_PASSIVE | {_RELA} if not kept else {_PROGBITS, _NOBITS, _UNWIND}) and (
            kept or section.type != _PROGBITS
        ):
            raise UnsupportedError(f"section {index} is of type {section.type:#x}")
        if section.flags & _TLS:
            raise UnsupportedError("it has variables of threads")
        yield section


def _symbol_table(data: bytes, sections: list[_Section]) -> list[tuple[str, int, int, int, int]]:
    """Name, type, section, value and binding of each symbol."""
    found = [section for section in sections if section.type == 2]
    if len(found) != 1:
        raise UnsupportedError(f"it has {len(found)} symbol tables")
    (table,) = found
    names = sections[table.link].offset
    return [
        (data[names + name : data.index(b"\0", names + name)].decode(), info & 15, section, value, info >> 4)
        for name, info, _, section, value, _ in iter_unpack(_SYMBOL, data[table.offset : table.offset + table.size])
    ]


def _lay_out(objects: list[list[_Section]], reserved: int) -> tuple[dict[tuple[int, int], int], int, int]:
    """The place of each section that stays in memory, where those that can be written to begin, and the end."""
    places: dict[tuple[int, int], int] = {}
    end = reserved
    fixed = 0
    for writable in (0, _WRITE):
        for number, sections in enumerate(objects):
            for index, section in enumerate(sections):
                if section.flags & _ALLOC and section.flags & _WRITE == writable:
                    alignment = max(section.alignment, 1)
                    if _PAGE % alignment:
                        raise UnsupportedError(f"section {index} is aligned to {alignment}")
                    place = places[number, index] = -(-end // alignment) * alignment
                    # The table of stack frames ends at a word of zeros.
                    end = place + section.size + (8 if section.type == _UNWIND else 0)
        if not writable:
            end = fixed = max(-(-end // _PAGE) * _PAGE, _PAGE)
    return places, fixed, end


def _map(size: int) -> int:
    """The address of new pages that can be written to."""
    libc = _libc()
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "no memory")
    return int(address)


def _protect(address: int, size: int) -> None:
    """Let pages be executed, and no longer written to."""
    if _libc().mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise UnsupportedError(f"memory can not be made executable: error {ctypes.get_errno()}")


def _patch(memory: memoryview, start: int, place: int, kind: int, target: int, word: int | None, addend: int) -> None:
    """Put an address into code or constants.

    Args:
        start: the address of `memory`; `place`, `target` and `word` count from there.
        kind: the type of the relocation.
        word: where the address of a foreign symbol stands; None for a symbol of this module.
    """
    match kind, word:
        case (1, None):  # R_X86_64_64
            pack_into("<q", memory, place, start + target + addend)
        case (2, None) | (4, _):  # R_X86_64_PC32, R_X86_64_PLT32
            pack_into("<i", memory, place, target + addend - place)
        case (9 | 41 | 42, int()):  # R_X86_64_GOTPCREL, R_X86_64_GOTPCRELX, R_X86_64_REX_GOTPCRELX
            pack_into("<i", memory, place, word + addend - place)
        case (24, None):  # R_X86_64_PC64
            pack_into("<q", memory, place, target + addend - place)
        case _:
            raise UnsupportedError(f"relocation {kind} of {'this module' if word is None else 'a foreign symbol'}")


def _register(address: int, frames: list[int]) -> None:
    """Let exceptions and the end of a thread unwind the stack through this code."""
    _unwinder().__register_frame(ctypes.c_void_p(address))
    frames.append(address)


def _free(address: int, size: int, frames: list[int]) -> None:
    for frame in frames:
        _unwinder().__deregister_frame(ctypes.c_void_p(frame))
    _libc().munmap(address, size)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    """The C library with what is needed of it declared: handles made elsewhere keep their own declarations."""
    libc = ctypes.CDLL(None, use_errno=True)
    word, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes = (ctypes.c_void_p, word, number, number, number, ctypes.c_int64)
    libc.mmap.restype = ctypes.c_void_p
    libc.mprotect.argtypes = (ctypes.c_void_p, word, number)
    libc.munmap.argtypes = (ctypes.c_void_p, word)
    return libc


@lru_cache(maxsize=1)
def _unwinder() -> ctypes.CDLL:
    """The library that unwinds stacks, which the C library itself loads when a thread ends early."""
    return ctypes.CDLL("libgcc_s.so.1")
