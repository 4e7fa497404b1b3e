"""The kernel cache: machine code of equal modules is shared in a process, and kept on disk for later ones.

An entry's name is a digest of everything that decides the code: the module's text, which holds neither weights nor
addresses, the target, and the versions. The file holds a mark, the digest, a checksum and the object file. Writers
rename a complete temporary file, so no lock is needed and a reader meets a whole entry or none. Whatever goes wrong
with the folder or a file in it counts as "not there": the code is generated, and the call goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from graphkb.ir.record import record
from graphkb.runtime.options import Options

if TYPE_CHECKING:
    from graphkb.codegen.engine import Engine
    from graphkb.codegen.target import Target

MOST_BYTES = 256 * 2**20
"""The size that the folder is trimmed to, about: the entries longest unused go first."""

_FORMAT = 2
_MARK = f"graphkb kernels {_FORMAT}\n".encode()
_SUFFIX = ".kernels"
_TEMPORARY = ".tmp"
_HEADER_BYTES = len(_MARK) + 32 + 32
# Looking at every entry costs milliseconds once there are thousands, so one store in so many does it.
_TRIM_EVERY = 32
_HOUR = 3600.0
# More threads than this gain little: the longest function of a module is one thread's work.
_MOST_THREADS = 4
_POSSIBLE = hasattr(os, "geteuid") and os.open in os.supports_dir_fd

_engines: weakref.WeakValueDictionary[str, Engine] = weakref.WeakValueDictionary()
_said: set[str] = set()


class _UnusableError(Exception):
    """The folder must not be used; the message says why."""


@record
class CacheState:
    """What is in the folder: its path ("" where the cache is off), entries, bytes, and why it is not used, if so."""

    path: str
    entries: int = 0
    nbytes: int = 0
    obstacle: str = ""


def compile_kernels(text: str, target: Target, options: Options, level: int = 2) -> Engine:
    """The engine of a module of LLVM text: one that lives already, one from disk, or a new one, which goes to disk.

    It is freed when the last of those who compiled the same text, for as many threads, drops it.

    Args:
        text: the module, from `Builder.module`.
        target: a machine that this process can run.
        options: `kernel_cache` names the folder; `debug` tells what was found; `threads` limits its regions.
        level: LLVM's code generation effort, 0 to 3.

    Raises:
        RuntimeError: the text is not valid LLVM; the message is LLVM's.
    """
    from graphkb.codegen.engine import emit_objects, load_object
    from graphkb.codegen.thread_pool import POOL_DECLARATION
    from graphkb.runtime.threads import pool_symbols, thread_count

    start = time.perf_counter()
    key = _key(text, target, level)
    pooled = POOL_DECLARATION in text
    engine = find_kernels(key, target, options, pooled, level)
    if engine is None:
        data = emit_objects(text, target, min(thread_count(options), _MOST_THREADS), level)
        known = pool_symbols(target, options) if pooled else {}
        # What is kept is what runs: both ways lead through the same object files.
        try:
            engine = load_object(data, target, text, level, known)
        except ValueError:  # several files, which this machine's linker does not take
            data = emit_objects(text, target, 1, level)
            engine = load_object(data, target, text, level, known)
        _tell(options, "miss", key, len(data), start)
        write_entry(folder_of(options), key, data, options)
        _share(engine, key, options, pooled)
    engine.text = text
    return engine


def find_kernels(key: str, target: Target, options: Options, pooled: bool, level: int = 2) -> Engine | None:
    """The engine of a module by its key: one that lives already, or one from disk; None where there is neither.

    Args:
        pooled: whether it has parallel regions.
    """
    from graphkb.codegen.engine import load_object
    from graphkb.runtime.threads import pool_symbols

    start = time.perf_counter()
    engine = _engines.get(_shared_key(key, options, pooled))
    if engine is not None:
        _tell(options, "shared", key, 0, start)
        return engine
    data = read_entry(folder_of(options), key, options)
    if data is None:
        return None
    known = pool_symbols(target, options) if pooled else {}
    try:
        engine = load_object(data, target, level=level, known=known)
    except ValueError:
        return None
    _tell(options, "hit", key, len(data), start)
    _share(engine, key, options, pooled)
    return engine


def _share(engine: Engine, key: str, options: Options, pooled: bool) -> None:
    from graphkb.runtime.threads import limit_threads

    if pooled:
        limit_threads(engine, options)
    engine.key, engine.pooled = key, pooled
    _engines[_shared_key(key, options, pooled)] = engine


def _shared_key(key: str, options: Options, pooled: bool) -> str:
    """Functions for different numbers of threads have engines of their own: the number is a word of the module."""
    from graphkb.runtime.threads import thread_count

    return f"{key} {thread_count(options)}" if pooled else key


def find_target(options: Options) -> Target:
    """The target of code for this process, as `host_target(options.target)` gives it.

    What LLVM says about the machine is kept in the folder as well, so that a process whose kernels are all there does
    not load LLVM, which takes as long as importing NumPy.

    Raises:
        ValueError: as `host_target` raises it.
    """
    from graphkb.codegen.target import assume_host, host_target, known_host

    folder = folder_of(options) if known_host() is None else ""
    key = machine_key() if folder else ""
    if not key:
        return host_target(options.target)
    data = read_entry(folder, key, options)
    if data is not None:
        with suppress(ValueError, TypeError, KeyError):
            assume_host(*json.loads(data))
    believed = known_host() is not None
    target = host_target(options.target)
    host = known_host()
    if not believed and host is not None:
        write_entry(folder, key, json.dumps([host.name, host.triple, host.tune]).encode(), options)
    return target


def machine_key() -> str:
    """A digest of the processor, as the system describes it, and of the LLVM that judges it; "" where it does not."""
    from graphkb.codegen.engine import llvm_identity

    try:
        with open("/proc/cpuinfo", "rb") as file:
            first = file.read(16384).partition(b"\n\n")[0]
    except OSError:
        return ""
    telling = (b"vendor_id", b"cpu family", b"model", b"stepping", b"flags")
    lines = [line for line in first.splitlines() if line.startswith(telling)]
    if not any(line.startswith(b"flags") for line in lines):
        return ""
    return hashlib.sha256(repr((_FORMAT, os.uname().machine, llvm_identity(), lines)).encode()).hexdigest()


def folder_of(options: Options) -> str:
    """The folder that the options mean, as an absolute path; "" for none."""
    choice = options.kernel_cache
    if choice == "off" or not _POSSIBLE:
        return ""
    if choice != "auto":
        return os.path.abspath(os.path.expanduser(choice))
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification says that relative ones count for nothing
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "graphkb", "kernels") if os.path.isabs(base) else ""


def cache_state(options: Options) -> CacheState:
    """What the folder of these options holds; it is not made."""
    folder = folder_of(options)
    if not folder:
        return CacheState("")
    try:
        with _opened(folder) as fd:
            sizes = [size for name, size, _ in _files(fd) if name.endswith(_SUFFIX)]
        return CacheState(folder, len(sizes), sum(sizes))
    except FileNotFoundError:
        return CacheState(folder)
    except (OSError, ValueError, _UnusableError) as error:
        return CacheState(folder, obstacle=_reason(error))


def _key(text: str, target: Target, level: int) -> str:
    from graphkb.codegen.engine import code_identity

    digest = hashlib.sha256(f"{_FORMAT}\n{code_identity(target, level)}\n".encode())
    digest.update(text.encode())
    return digest.hexdigest()


@contextmanager
def _opened(folder: str, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder: what is checked is what is used, even if the path changes its meaning.

    Raises:
        OSError: it is not there, or can not be made.
        _UnusableError: others could put machine code into it.
    """
    if make:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.geteuid():
            raise _UnusableError(f"it belongs to user {found.st_uid}, not to {os.geteuid()}")
        if stat.S_IMODE(found.st_mode) & 0o022:
            raise _UnusableError("others may write to it (chmod go-w mends that)")
        yield fd
    finally:
        os.close(fd)


def read_entry(folder: str, key: str, options: Options) -> bytes | None:
    """The object file of a complete entry; None for everything else."""
    if not folder:
        return None
    try:
        with _opened(folder) as fd:
            # A link, a pipe or a folder under the name of an entry is neither followed nor waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with os.fdopen(os.open(key + _SUFFIX, flags, dir_fd=fd), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_size > MOST_BYTES:
                    return None
                content = file.read()
            data = content[_HEADER_BYTES:]
            if content[:_HEADER_BYTES] != _header(key, data):
                _say(options, f"kernel cache: {key[:12]} in {folder} is damaged: it is made again")
                return None
            if time.time() - found.st_mtime > _HOUR:
                with suppress(OSError):  # a folder that is only read keeps no account of its use
                    os.utime(key + _SUFFIX, dir_fd=fd, follow_symlinks=False)
            return data
    except FileNotFoundError:
        return None
    except (OSError, ValueError, _UnusableError) as error:
        _complain(folder, error, options)
        return None


def write_entry(folder: str, key: str, data: bytes, options: Options) -> None:
    """Keep an object file, if that is possible."""
    if not folder or len(data) > MOST_BYTES // 4:
        return
    temporary = f".{key[:12]}-{os.urandom(8).hex()}{_TEMPORARY}"
    try:
        with _opened(folder, make=True) as fd:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(temporary, flags, 0o600, dir_fd=fd)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(_header(key, data))
                    file.write(data)
                os.replace(temporary, key + _SUFFIX, src_dir_fd=fd, dst_dir_fd=fd)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=fd)
                raise
            if int(key[:8], 16) % _TRIM_EVERY == 0:
                _trim(fd)
    except (OSError, ValueError, _UnusableError) as error:
        _complain(folder, error, options)


def _header(key: str, data: bytes) -> bytes:
    return _MARK + bytes.fromhex(key) + hashlib.sha256(data).digest()


def _files(fd: int) -> Iterator[tuple[str, int, float]]:
    """Name, size and time of the last use of every file in the folder that is the cache's own."""
    with os.scandir(fd) as found:
        for entry in found:
            if entry.name.endswith((_SUFFIX, _TEMPORARY)):
                with suppress(FileNotFoundError):  # another process trims as well
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield entry.name, status.st_size, status.st_mtime


def _trim(fd: int) -> None:
    """Remove what a killed writer left, and the entries longest unused where there is too much."""
    entries = []
    for name, size, used in _files(fd):
        if name.endswith(_SUFFIX):
            entries.append((used, size, name))
        elif time.time() - used > _HOUR:
            _remove(fd, name)
    total = sum(size for _, size, _ in entries)
    if total <= MOST_BYTES:
        return
    for _, size, name in sorted(entries):
        if total <= MOST_BYTES * 3 // 4:  # room for a while
            break
        _remove(fd, name)
        total -= size


def _remove(fd: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)


def _tell(options: Options, what: str, key: str, size: int, start: float) -> None:
    if options.debug:
        milliseconds = (time.perf_counter() - start) * 1e3
        _say(options, f"kernel cache: {what} {key[:12]}, {size} bytes of machine code, {milliseconds:.1f} ms")


def _complain(folder: str, error: Exception, options: Options) -> None:
    """Say once in a process why the folder is not used."""
    if options.debug and folder not in _said:
        _said.add(folder)
        _say(options, f"kernel cache: {folder} is not used: {_reason(error)}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _say(options: Options, text: str) -> None:
    """One line to the log named graphkb, or to the standard error stream where nobody listens to that log."""
    if not options.debug:
        return
    import logging

    log = logging.getLogger("graphkb")
    if log.isEnabledFor(logging.DEBUG) and log.hasHandlers():
        log.debug(text)
    elif sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(f"graphkb: {text}", file=sys.stderr)
