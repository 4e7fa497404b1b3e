"""Threads of ahead-of-time libraries: a pool of their own, a function of the program's, or none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphkb
from graphkb import backend as K
from graphkb.codegen.target import TARGETS, host_target
from graphkb.codegen.thread_pool import system_of
from graphkb.ir.errors import CompileError
from graphkb.runtime.function import Function

pytest.importorskip("llvmlite")
CC = shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None or not system_of(host_target()), reason="needs a C compiler and pthreads")

ROWS, COLUMNS = 701, 403
X = np.random.default_rng(3).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def network() -> Function:
    x = K.placeholder((None, COLUMNS), name="x")
    return K.function([x], [K.softmax(x), K.sum(x, 0), K.cumsum(x, 1)])


# Writes the outputs to standard output; the rest of main stands in the middle.
MAIN = """
#define _GNU_SOURCE
#include "net.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
enum {{ ROWS = {rows}, COLUMNS = {columns} }};
static float x[ROWS * COLUMNS], a[ROWS * COLUMNS], b[COLUMNS], c[ROWS * COLUMNS];
static int run(void) {{
  void *workspace = aligned_alloc(64, net_workspace_size(ROWS) + 64);
  int status = net_run(x, a, b, c, ROWS, workspace);
  free(workspace);
  return status;
}}
{functions}
int main(void) {{
  FILE *file = fopen("x.bin", "rb");
  if (!file || fread(x, sizeof x, 1, file) != 1) return 1;
{body}
  fwrite(a, sizeof a, 1, stdout);
  fwrite(b, sizeof b, 1, stdout);
  fwrite(c, sizeof c, 1, stdout);
  return 0;
}}
"""


def run_in_c(folder: Path, threads: str, body: str, functions: str = "") -> list[np.ndarray[Any, Any]]:
    """The outputs of a C program that links the object file."""
    files = graphkb.compile(network(), folder / "net", threads=threads)
    X.tofile(folder / "x.bin")
    source = MAIN.format(rows=ROWS, columns=COLUMNS, functions=functions, body=body)
    (folder / "main.c").write_text(source)
    link = ["-pthread"] if threads == "pool" or "pthread_create" in functions else []
    assert CC is not None
    command = [CC, "-std=c11", "-Wall", "-Werror", "-O1", *link, "-o", "main", "main.c", str(files.object)]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run(["./main"], cwd=folder, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    flat = np.frombuffer(done.stdout, np.float32)
    ends = np.cumsum([ROWS * COLUMNS, COLUMNS, ROWS * COLUMNS])
    assert flat.size == ends[-1]
    return [part.reshape(-1, COLUMNS) for part in np.split(flat, ends[:-1])]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray[Any, Any]]:
    """What the library without threads gives, close to what NumPy does."""
    library = graphkb.load(graphkb.compile(network(), tmp_path_factory.mktemp("none") / "net").library)  # type: ignore[arg-type]
    outputs = library([X])
    wide = X.astype(np.float64)
    exact = np.exp(wide - wide.max(1, keepdims=True))
    np.testing.assert_allclose(outputs[0], exact / exact.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(outputs[1], wide.sum(0), rtol=1e-4, atol=1e-4)
    return [output.reshape(-1, COLUMNS) for output in outputs]


def check(found: list[np.ndarray[Any, Any]], expected: list[np.ndarray[Any, Any]]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


POOLS = {
    "as many as there are processors": "  if (run()) return 2;",
    "three threads": "  net_set_threads(3);\n  for (int i = 0; i < 50; i++) if (run()) return 2;",
    "one thread": "  net_set_threads(1);\n  if (run()) return 2;",
    "a child of a fork": """
  net_set_threads(3);
  if (run()) return 2;
  pid_t child = fork();
  if (child == 0) {
    alarm(30);
    for (int i = 0; i < 20; i++) if (run()) _exit(3);
    _exit(7);
  }
  int status;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7) return 4;
  if (run()) return 5;""",
}


@pytest.mark.parametrize("body", POOLS.values(), ids=POOLS)
def test_a_pool_in_a_c_program(tmp_path: Path, expected: list[np.ndarray[Any, Any]], body: str) -> None:
    check(run_in_c(tmp_path, "pool", body), expected)


def test_a_hook_of_a_c_program(tmp_path: Path, expected: list[np.ndarray[Any, Any]]) -> None:
    """It takes single parts, the last first, and half of them on another thread."""
    functions = """
static int calls;
struct half { net_body body; void *context; int64_t extent, grain, odd; };
static void *do_half(void *argument) {
  struct half *h = argument;
  int64_t parts = (h->extent + h->grain - 1) / h->grain;
  for (int64_t i = parts - 1; i >= 0; i--)
    if (i % 2 == h->odd)
      h->body(h->context, i * h->grain, (i + 1) * h->grain < h->extent ? (i + 1) * h->grain : h->extent);
  return 0;
}
static void mine(net_body body, void *context, int64_t extent, int64_t grain) {
  struct half even = {body, context, extent, grain, 0}, odd = even;
  pthread_t thread;
  odd.odd = 1;
  calls++;
  if (pthread_create(&thread, 0, do_half, &odd)) abort();
  do_half(&even);
  pthread_join(thread, 0);
}"""
    body = """
  if (run() || calls) return 2;
  net_set_parallel_for(mine);
  if (run() || calls < 3) return 3;
  int before = calls;
  net_set_parallel_for(0);
  if (run() || calls != before) return 4;
  net_set_parallel_for(mine);
  if (run()) return 5;"""
    check(run_in_c(tmp_path, "hook", body, functions), expected)


@pytest.mark.parametrize("threads", ["hook", "pool"])
def test_libraries_load_in_python(tmp_path: Path, expected: list[np.ndarray[Any, Any]], threads: str) -> None:
    library = graphkb.load(graphkb.compile(network(), tmp_path / "net", threads=threads).library)  # type: ignore[arg-type]
    for _ in range(5):
        check([output.reshape(-1, COLUMNS) for output in library([X])], expected)


def test_only_a_pool_needs_libc(tmp_path: Path) -> None:
    assert shutil.which("nm")
    needed = {}
    for threads in ("none", "hook", "pool"):
        files = graphkb.compile(network(), tmp_path / threads, threads=threads)
        listed = subprocess.run(["nm", "-u", str(files.object)], capture_output=True, text=True, check=True).stdout
        needed[threads] = set(listed.split()) - {"U"}
    assert needed["none"] == needed["hook"] == set()
    assert "pthread_create" in needed["pool"]
    known = ("pthread_", "sched_", "sig", "clock_gettime")
    assert all(name.startswith(known) for name in needed["pool"])


@pytest.mark.filterwarnings("ignore:.*was not linked")  # there need be no linker for other machines
@pytest.mark.parametrize("name", [name for name in TARGETS if not name.startswith("x86")])
def test_other_machines(tmp_path: Path, name: str) -> None:
    for threads in ("hook", "pool") if system_of(TARGETS[name]) else ("hook",):
        files = graphkb.compile(network(), tmp_path / threads, threads=threads, target=name)
        assert files.object.stat().st_size > 0


def test_bad_threads(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"^compile: threads is 'many': expected 'none', 'hook' or 'pool'$"):
        graphkb.compile(network(), tmp_path / "net", threads="many")
    with pytest.raises(
        CompileError, match=r"^compile: there are no pthreads for wasm32: use threads='hook' or 'none'$"
    ):
        graphkb.compile(network(), tmp_path / "net", threads="pool", target="wasm32")
