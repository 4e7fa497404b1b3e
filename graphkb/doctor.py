"""`graphkb doctor`: what this installation has, what it will do with it, and what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import graphkb
from graphkb.runtime.options import VARIABLES, current

# What each package that may be missing is for.
NEEDED = {"llvmlite": "native code; without it everything is interpreted", "networkx": "Graph.to_networkx"}
OPTIONAL = {
    "tqdm": "progress bars in the examples",
    "scipy": "sparse inputs",
    "h5py": "Keras model files",
    "numexpr": "a peer in the benchmarks",
}
_CPU_FEATURES = (
    "sse2", "sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16",
    "avx512fp16", "amx-tile", "neon", "sve", "v",
)  # fmt: skip


class Findings:
    """The lines of the report, and whether something essential is broken."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken = False

    def add(self, topic: str, text: str) -> None:
        """One line."""
        self.lines.append(f"{topic:<16}{text}")

    def check(self, topic: str, find: Callable[[], str], essential: bool = False) -> None:
        """One line from a function, or what went wrong in it."""
        try:
            self.add(topic, find())
        except Exception as error:  # a doctor reports what is ill and goes on
            self.add(topic, f"BROKEN: {type(error).__name__}: {' '.join(str(error).split())}")
            self.broken |= essential


def examine() -> Findings:
    """Look at everything; nothing that is missing or broken raises."""
    found = Findings()
    found.add("graphkb", f"{graphkb.__version__} in {Path(graphkb.__file__).parent}")
    found.add("python", _python())
    found.add("platform", _platform())
    found.add("numpy", np.__version__)
    for name, purpose in NEEDED.items():
        found.check(name, lambda name=name, purpose=purpose: _package(name, purpose))  # type: ignore[misc]
    found.check("cpu", _cpu)
    found.check("target", _target)
    found.check("native calls", _native_calls)
    found.check("threads", _threads)
    found.check("options", _options)
    found.check("configuration", _configuration)
    found.check("kernel cache", _cache)
    found.add("c compiler", _compiler())
    missing = [f"{name} ({purpose})" for name, purpose in OPTIONAL.items() if not _installed(name)]
    found.add("not installed", ", ".join(missing) or "nothing that is of use")
    found.check("self-test", _self_test, essential=True)
    return found


def _python() -> str:
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    build = "with the GIL" if gil else "free-threaded"
    return f"{platform.python_version()} ({platform.python_implementation()}, {build}) at {sys.executable}"


def _platform() -> str:
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    return f"{platform.system()} {platform.release()}, {platform.machine()}, {usable} of {count} processors usable"


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _package(name: str, purpose: str) -> str:
    if not _installed(name):
        return f"not installed: {purpose} (pip install {name})"
    version = importlib.metadata.version(name)
    if name != "llvmlite":
        return version
    from llvmlite import binding

    return f"{version} with LLVM {'.'.join(map(str, binding.llvm_version_info))}"


def _cpu() -> str:
    if not _installed("llvmlite"):
        return "not looked at without llvmlite"
    from llvmlite import binding

    has = binding.get_host_cpu_features()
    return f"{binding.get_host_cpu_name()}: {' '.join(f for f in _CPU_FEATURES if has.get(f)) or 'no vectors'}"


def _target() -> str:
    from graphkb.codegen.target import TARGETS, host_target

    known = f"known: {', '.join(TARGETS)}"
    if not _installed("llvmlite"):
        return f"none without llvmlite; {known}"
    chosen = host_target()
    reason = "from GRAPHKB_TARGET" if os.environ.get("GRAPHKB_TARGET") else "detected"
    return f"{chosen.name} ({chosen.vector_bits}-bit vectors, {reason}); {known}"


def _native_calls() -> str:
    if not _installed("llvmlite"):
        return "no: llvmlite is not installed"
    from graphkb.runtime.native_call import available

    possible, reason = available()
    return "yes" if possible else f"no: {reason}"


def _threads() -> str:
    from graphkb.codegen.target import host_target
    from graphkb.codegen.thread_pool import system_of
    from graphkb.runtime.threads import explain_threads

    decided = explain_threads()
    if _installed("llvmlite") and not system_of(host_target()):
        return f"1: there is no pool for {platform.system()}"
    return f"{decided.count}: {decided.reason}"


def _options() -> str:
    chosen = current()
    given = [variable for variable in VARIABLES.values() if os.environ.get(variable)]
    shown = ", ".join(f"{name}={getattr(chosen, name)}" for name in VARIABLES)
    return shown + (f"; set by {', '.join(given)}" if given else "")


def _configuration() -> str:
    from graphkb.backend import config

    file = Path(config.config_folder()) / "keras.json"
    source = f"from {file}" if file.is_file() else f"defaults; there is no {file}"
    values = config.settings()
    return f"floatx {values.floatx}, epsilon {values.epsilon}, {values.image_data_format} ({source})"


def _cache() -> str:
    from graphkb.runtime.kernel_cache import MOST_BYTES, cache_state

    state = cache_state(current())
    if not state.path:
        return "off: machine code lives as long as its function"
    if state.obstacle:
        return f"{state.path} is not used: {state.obstacle}"
    size = f"{state.nbytes / 2**20:.1f} of at most {MOST_BYTES >> 20} MB"
    return f"{state.path}: {state.entries} entries, {size}"


def _compiler() -> str:
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path:
            try:
                run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
                return f"{path}: {(run.stdout.splitlines() or ['?'])[0]}"
            except (OSError, subprocess.SubprocessError) as error:
                return f"{path}, which does not run: {error}"
    if _installed("ziglang"):
        return f"the one of ziglang {importlib.metadata.version('ziglang')}"
    return "none (cc, gcc, clang or the package ziglang): graphkb.compile makes object files, no shared libraries"


def _self_test() -> str:
    """A small dense layer, compiled as far as it can be, against NumPy in float64."""
    from graphkb.ir.dims import symbol
    from graphkb.ir.graph import Graph
    from graphkb.ops.elementwise import relu
    from graphkb.ops.leaf import constant, placeholder
    from graphkb.ops.linalg import dot
    from graphkb.runtime.function import Function

    generator = np.random.default_rng(0)
    weights, values = generator.normal(size=(7, 5)), generator.normal(size=(3, 7)).astype(np.float32)
    x = placeholder((symbol("n"), 7), "float32", "x")
    y = relu(dot(x, constant(weights, "float32"), (), (), (1,), (0,)) + 0.5) * 2.0
    function = Function(Graph((x,), (y,), name="self_test"))
    (found,) = function([values])
    expected = np.maximum(values.astype(np.float64) @ weights + 0.5, 0) * 2
    error = float(np.abs(found - expected).max())
    if not error < 1e-4:
        raise ArithmeticError(f"a small program is wrong by {error}")
    report = function.report()
    return f"passed: {report.native} native, {report.interpreted} interpreted steps"
