"""Handwritten digits from a lazy graph to a shared library: build, differentiate, train, dump, compile, call.

Run it with `python examples/digits.py [--out DIR] [--epochs N]`. It needs nothing but graphkb and the data
file beside it, draws its progress bar with tqdm if that is installed, and calls the library from C if there
is a C compiler. The exit code is 1 if the test accuracy stays below 0.97 or if any answers disagree.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import graphkb
from graphkb import backend as K

HERE = Path(__file__).resolve().parent
GOAL = 0.97  # test accuracy
TEST_IMAGES = 360
BATCH = 32
RATE = 0.1
MOMENTUM = 0.9
TOLERANCE = 1e-5  # between two float32 evaluations of one probability

T = TypeVar("T")


# --- 1. the data ---


@dataclass(frozen=True)
class Digits:
    """Scans as float32 rows of 64 numbers in 0..1, and their classes 0..9; a fixed shuffle splits them."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def load_digits(seed: int = 0) -> Digits:
    """The 1,797 scans: 1,437 to train on, 360 to test with, chosen by `seed`."""
    with np.load(HERE / "data" / "digits.npz") as file:
        x = file["images"].reshape(-1, 64).astype(np.float32) / 16
        y = file["labels"].astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return Digits(x[train], y[train], x[test], y[test])


def show_scan(pixels: np.ndarray) -> str:
    """One scan as eight lines of text, darker where there is more ink."""
    shades = np.array(list(" .:-=+*#@"))
    return "\n".join("    " + "".join(2 * s for s in row) for row in shades[(pixels.reshape(8, 8) * 8).astype(int)])


# --- 2. the network ---


@dataclass(frozen=True)
class Network:
    """What one does with the network; all share one set of weights."""

    x: Any  # the scans
    probabilities: Any  # of the ten classes
    train_step: Any  # [x, y] -> [loss], and updates the weights
    predict: Any  # [x] -> [probabilities]


def build_network(seed: int = 0) -> Network:
    """Build the 64-128-10 network. Nothing is computed here: every line only adds nodes to a graph."""
    rng = np.random.default_rng(seed)

    def glorot(rows: int, cols: int) -> np.ndarray:
        limit = np.sqrt(6 / (rows + cols))  # Glorot and Bengio (2010), uniform
        return rng.uniform(-limit, limit, (rows, cols))

    initial = [glorot(64, 128), np.zeros(128), glorot(128, 10), np.zeros(10)]
    weights = [K.variable(value) for value in initial]
    velocities = [K.variable(np.zeros(value.shape)) for value in initial]
    w1, b1, w2, b2 = weights

    x = K.placeholder((None, 64), name="scans")  # None: any number of them
    y = K.placeholder((None, 10))
    hidden = K.relu(K.dot(x, w1) + b1)
    probabilities = K.softmax(K.dot(hidden, w2) + b2)
    loss = K.mean(K.categorical_crossentropy(y, probabilities))

    # SGD with momentum. All updates read the old values, so the order of the list does not matter.
    updates = []
    for w, velocity, gradient in zip(weights, velocities, K.gradients(loss, weights)):
        step = MOMENTUM * velocity - RATE * gradient
        updates += [(velocity, step), (w, w + step)]

    return Network(
        x,
        probabilities,
        train_step=K.function([x, y], [loss], updates=updates),
        predict=K.function([x], [probabilities]),
    )


# --- 3. training ---


def train(net: Network, data: Digits, epochs: int, seed: int = 0) -> float:
    """Run `epochs` passes over the training scans; return the mean loss of the last one."""
    rng = np.random.default_rng(seed)
    targets = np.eye(10, dtype=np.float32)[data.train_y]
    losses = [float("nan")]
    for epoch in progress(range(epochs), f"{epochs} epochs"):
        order = rng.permutation(len(data.train_x))
        losses = []
        for start in range(0, len(order), BATCH):  # the last batch is smaller: the graph takes any number of rows
            rows = order[start : start + BATCH]
            losses.append(float(net.train_step([data.train_x[rows], targets[rows]])[0]))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss became {losses[-1]} in epoch {epoch + 1}")
    return float(np.mean(losses))


def progress(items: Iterable[T], label: str) -> Iterable[T]:
    """`items` with a progress bar: tqdm's if it is installed, a plain line of dots otherwise."""
    try:
        from tqdm import tqdm
    except ImportError:
        return plain_progress(list(items), label)
    bar: Iterable[T] = tqdm(items, desc=label, leave=True)
    return bar


def plain_progress(items: list[T], label: str) -> Iterator[T]:
    """`items`, and a bar of 40 dots on standard error that fills as they are used up."""
    shown = 0
    print(f"{label} [", end="", file=sys.stderr, flush=True)
    for done, item in enumerate(items, 1):
        yield item
        print("." * (40 * done // len(items) - shown), end="", file=sys.stderr, flush=True)
        shown = 40 * done // len(items)
    print("]", file=sys.stderr, flush=True)


def accuracy(probabilities: np.ndarray, classes: np.ndarray) -> float:
    """The share of rows whose largest probability stands at the right class."""
    return float(np.mean(probabilities.argmax(axis=-1) == classes))


# --- 4. ahead of time: a shared library, and a C program that calls it ---


def run_in_c(out: Path, scans: np.ndarray) -> np.ndarray | None:
    """Compile and run digits.c with the library in `out`; the predicted classes, or None without a C compiler."""
    cc = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if cc is None:
        return None
    (out / "scans.bin").write_bytes(np.int32(len(scans)).tobytes() + scans.astype(np.float32).tobytes())
    program = str(out / "digits")
    find = ["-I", str(out), str(out / "digits.so"), "-Xlinker", "-rpath", "-Xlinker", str(out)]
    subprocess.run([cc, "-O1", "-Wall", "-Wextra", str(HERE / "digits.c"), *find, "-o", program], check=True)
    done = subprocess.run([program, str(out / "scans.bin")], check=True, capture_output=True, text=True)
    return np.array(done.stdout.split(), dtype=np.int64)


# --- 5. the whole job ---


def show_graphs(net: Network, out: Path) -> None:
    """Print both optimized graphs and what became of the prediction's kernels; save both graphs as pictures."""
    for name, function in (("training step", net.train_step), ("prediction", net.predict)):
        print(f"\nThe {name}, optimized:\n{function.dump(stage='optimized')}")
        picture = out / f"{name.replace(' ', '_')}.svg"
        function.dump(stage="optimized", format="svg", file=str(picture))
        print(f"its picture: {picture}")
    print(f"\nWhat the prediction runs:\n{net.predict.report()}\n")


def compare(net: Network, library: Path | None, scans: np.ndarray, answers: np.ndarray, out: Path) -> bool:
    """Whether the interpreter, the library and the C program all give the answers of the compiled function."""
    with graphkb.options(mode="interpret"):  # a function keeps the options under which it was made
        interpret = K.function([net.x], [net.probabilities])
    agree = report("NumPy interpreter", interpret([scans])[0], answers)
    if library is None:
        print("digits.so: skipped, there is nothing to link it with (a C compiler, or `pip install ziglang`)")
        return agree
    agree &= report("digits.so from Python", graphkb.load(library)([scans])[0], answers)
    from_c = run_in_c(out, scans)
    if from_c is None:
        print("digits.so from C: skipped, there is no C compiler (cc, gcc or clang)")
        return agree
    same = bool(np.array_equal(from_c, answers.argmax(axis=-1)))
    print(f"digits.so from C: {len(from_c)} predicted classes, {'all the same' if same else 'NOT the same'}")
    return agree and same


def report(name: str, found: np.ndarray, expected: np.ndarray) -> bool:
    """Print how far `found` is from the compiled function's answers; whether the two agree."""
    distance = float(np.max(np.abs(found - expected)))
    same = bool(np.array_equal(found.argmax(axis=-1), expected.argmax(axis=-1)))
    print(f"{name}: largest difference {distance:.1e}, classes {'all the same' if same else 'NOT the same'}")
    return same and distance <= TOLERANCE


def main(argv: list[str] | None = None) -> int:
    """Do it all and say what happens; return the exit code."""
    parser = argparse.ArgumentParser(description="Train, dump and compile a classifier for handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path("digits-out"), help="folder for what is written")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training scans")
    args = parser.parse_args(argv)
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)

    data = load_digits()
    print(
        f"{len(data.train_x)} scans to train on, {len(data.test_x)} to test with. The first one is a {data.train_y[0]}:"
    )
    print(show_scan(data.train_x[0]))

    net = build_network()
    start = time.perf_counter()
    loss = train(net, data, args.epochs)
    seconds = time.perf_counter() - start
    answers = net.predict([data.test_x])[0]
    reached = accuracy(answers, data.test_y)
    print(f"trained in {seconds:.2f} s, compilation included: loss {loss:.4f}, test accuracy {reached:.4f}")

    show_graphs(net, out)
    files = graphkb.compile(net.predict, out / "digits.so", prefix="digits")
    print(f"wrote {', '.join(str(f) for f in (files.object, files.library, files.header) if f is not None)}")
    agree = compare(net, files.library, data.test_x, answers, out)

    if reached < GOAL:
        print(f"test accuracy {reached:.4f} is below {GOAL}", file=sys.stderr)
    if not agree:
        print("the answers do not agree", file=sys.stderr)
    return 0 if agree and reached >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
