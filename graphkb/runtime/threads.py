"""Threads: how many this process may use, and the pool that all its native functions share."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from graphkb.ir.record import record
from graphkb.runtime.options import Options, current

if TYPE_CHECKING:
    from graphkb.codegen.engine import Engine
    from graphkb.codegen.target import Target


@record
class ThreadCount:
    """A number of threads, and what decided it."""

    count: int
    reason: str


def thread_count(options: Options | None = None) -> int:
    """How many threads a function made now would use, the one that calls it among them.

    That is the option `threads`, where it is set; else the first number in the environment variable OMP_NUM_THREADS;
    else as many as there are processors that this process may run on, no more than the control group's limit on
    processor time allows.

    Args:
        options: instead of those in force.
    """
    return explain_threads(options).count


def explain_threads(options: Options | None = None) -> ThreadCount:
    """`thread_count` with its reason."""
    chosen = (current() if options is None else options).threads
    if chosen:
        return ThreadCount(chosen, "the option threads")
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return ThreadCount(int(first), "OMP_NUM_THREADS")
    processors = _processors()
    limit = cgroup_limit()
    if limit is not None and limit < processors:
        return ThreadCount(limit, "the control group's limit on processor time")
    return ThreadCount(processors, "the processors that this process may run on")


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        with suppress(OSError):
            return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------- control groups
def cgroup_limit(process: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many processors' time the control groups of this process grant it, rounded up; None without a limit.

    Args:
        process: lists the groups of the process, one line each: number, controllers and path.
        root: where the file systems of the groups are mounted.
    """
    try:
        lines = process.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    limits: list[int] = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            # In a container the path may be that of the host, and the group's own files stand at the root.
            limits += [n for folder in _upwards(root, path) for n in _quota(folder / "cpu.max")]
        elif "cpu" in controllers.split(","):
            for mount in (controllers, "cpu"):
                limits += [n for folder in _upwards(root / mount, path) for n in _old_quota(folder)]
    return min(limits, default=None)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The folder of a group and those of the groups around it."""
    inner = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(inner), -1, -1):
        yield root.joinpath(*inner[:length])


def _quota(file: Path) -> Iterator[int]:
    """`150000 100000` in version 2: microseconds in a period of microseconds; `max` for no limit."""
    with suppress(OSError, ValueError):
        quota, period = file.read_text().split()
        if quota != "max":
            yield max(1, -(-int(quota) // max(1, int(period))))


def _old_quota(folder: Path) -> Iterator[int]:
    """The same in two files in version 1; -1 for no limit."""
    with suppress(OSError, ValueError):
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        if quota > 0:
            yield max(1, -(-quota // max(1, period)))


# ---------------------------------------------------------------------------------------------- the pool
class Pool:
    """The machine code of the pool. It is never freed: its workers never leave it."""

    def __init__(self, target: Target, options: Options) -> None:
        from graphkb.codegen import thread_pool
        from graphkb.codegen.threads import pool_module
        from graphkb.runtime.kernel_cache import compile_kernels

        self._engine: Engine = compile_kernels(pool_module(target), target, options)
        self.symbols = {thread_pool.POOL_SYMBOL: self._engine.address(thread_pool.POOL_SYMBOL)}
        address = self._engine.address
        self.reset = ctypes.PYFUNCTYPE(None)(address(thread_pool.RESET_SYMBOL))
        self._workers = ctypes.PYFUNCTYPE(ctypes.c_int64)(address(thread_pool.WORKERS_SYMBOL))

    @property
    def workers(self) -> int:
        """The threads that it has started; callers are not among them."""
        return int(self._workers())


_mutex = threading.Lock()
_pool: Pool | None = None


def shared_pool(target: Target, options: Options) -> Pool:
    """The pool of this process, made when it is first asked for; its threads start when there is work for them."""
    global _pool
    if _pool is None:
        with _mutex:
            if _pool is None:
                _pool = Pool(target, options)
    return _pool


def started_workers() -> int:
    """The threads that the pool of this process has started."""
    return _pool.workers if _pool is not None else 0


def pool_symbols(target: Target, options: Options) -> dict[str, int]:
    """The functions of the pool that modules with regions call, with their addresses."""
    return shared_pool(target, options).symbols


def limit_threads(engine: Engine, options: Options) -> None:
    """Let the regions of a module run on as many threads as its functions' options say."""
    from graphkb.codegen.threads import LIMIT_SYMBOL

    ctypes.PYFUNCTYPE(None, ctypes.c_int64)(engine.address(LIMIT_SYMBOL))(thread_count(options))


def _in_child() -> None:
    """After a fork only this thread runs: the pool starts others anew."""
    global _mutex
    _mutex = threading.Lock()
    if _pool is not None:
        _pool.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
