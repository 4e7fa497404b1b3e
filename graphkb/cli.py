"""The command line: `graphkb dump | compile | run | profile | bench | doctor`."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import graphkb
from graphkb.cli_source import UsageError, load_function, load_program, make_inputs, parse_pairs, parse_shapes
from graphkb.dumps import CODE_STAGES, FORMATS, dump, stage_names
from graphkb.ir.errors import InputError
from graphkb.ir.leaves import Array
from graphkb.runtime.function import Function
from graphkb.runtime.options import MODES

EPILOG = """\
A SOURCE names a program in a Python file: file.py:name, or module:name. The name is that of a function made by
K.function, of a tensor, of a list of tensors, or of a Python function without arguments that returns one of these;
it may be a path such as build().predict. A SOURCE can also be a graph.json that dump wrote, or
a model that Keras 2 saved: model.h5, or its architecture as .json or .yaml (needs the extra keras2).

exit codes: 0 done; 1 the program or the operation failed; 2 the command was not given what it needs

examples, with a file net.py:

    from graphkb import backend as K
    x = K.placeholder((None, 4), name="x")
    predict = K.function([x], [K.softmax(x * 2.0)])

    graphkb dump net.py:predict                              the optimized graph, one line per node
    graphkb dump net.py:predict --stage asm --shape x=32,4   its machine code for 32 rows
    graphkb run net.py:predict --input x=1,2,3,4             run it on one row
    graphkb bench net.py:predict --size batch=1000           time it
    graphkb profile net.py:predict --size batch=1000         see which kernel takes how long
    graphkb compile net.py:predict -o predict.so             a library for C, with its header
    graphkb doctor                                           what works on this machine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 bad usage. Errors are one line on standard error.
    """
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or given the help
        return stop.code if isinstance(stop.code, int) else 2
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = command(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has seen enough, as `head` does; nothing more may be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("graphkb: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        ours = type(error).__module__.partition(".")[0] == "graphkb" or isinstance(error, OSError)
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        print(f"graphkb {args.name}: {_one_line(text.removeprefix(f'{args.name}: '))}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, InputError)) else 1


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines())


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"graphkb: warning: {_one_line(str(message))}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------- arguments
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphkb",
        description="Look at, run, time and compile tensor programs written with graphkb.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"graphkb {graphkb.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = _command(commands, "dump", _dump, "show a program at a stage of its compilation")
    one.add_argument("--stage", default="optimized", help="one of --list; optimized by default")
    one.add_argument("--format", default="text", help=f"one of {', '.join(FORMATS)}; text by default")
    one.add_argument("--shape", action="append", default=[], metavar="X=32,64", help="the shape of an input")
    one.add_argument("--list", action="store_true", help="list all stages, and do nothing else")
    one.add_argument("-o", "--output", metavar="FILE", help="write to a file instead of standard output")

    one = _command(commands, "compile", _compile, "make a C library of a program")
    one.add_argument("-o", "--output", required=True, metavar="PATH", help="the library, such as net.so")
    one.add_argument("--prefix", help="what the names of the library's functions begin with; by default its file name")
    one.add_argument("--target", help="the machine that it is for; this one by default (graphkb doctor lists them)")
    one.add_argument("--size", action="append", default=[], metavar="N=32", help="fix an open size of the inputs")
    one.add_argument(
        "--threads", choices=("none", "hook", "pool"), default="none",
        help="who runs large loops: the caller alone, a function of the program, or threads of the library's own",
    )  # fmt: skip

    one = _command(commands, "run", _run, "run a program on given or random inputs")
    _add_inputs(one)
    one.add_argument("--repeat", type=_positive, default=1, metavar="N", help="call it N times, for its updates")
    one.add_argument("-o", "--output", metavar="FILE", help="save the outputs in a .npz file, or one in a .npy file")

    one = _command(commands, "profile", _profile, "show what a program spends its time on, kernel by kernel")
    _add_inputs(one)
    one.add_argument(
        "-o", "--output", metavar="FILE", help="save the roofline picture (.svg), the figures (.json) or the table"
    )

    one = _command(commands, "bench", _bench, "time a program, compiled and interpreted")
    _add_inputs(one)
    one.add_argument("--seconds", type=float, default=1.0, help="how long to measure each way; 1 by default")

    _command(commands, "doctor", _doctor, "tell versions, what works on this machine, and what is missing")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=_EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    if name != "doctor":
        # Not required where only the stages are listed.
        parser.add_argument("source", metavar="SOURCE", nargs="?" if name == "dump" else None, help="file.py:name")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    parser.set_defaults(command=run, name=name)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", action="append", default=[], metavar="X=VALUE",
        help="x=file.npy, x=file.npz:key, x=1,2,3, x=[[1,2],[3,4]], x=random; or random for all others",
    )  # fmt: skip
    parser.add_argument(
        "--size", action="append", default=[], metavar="N=32", help="an unknown size of random inputs; 32 by default"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs; 0 by default")
    parser.add_argument("--mode", choices=MODES, help="how to run it; see graphkb.options")


_EXAMPLES = {
    "dump": """\
examples:
    graphkb dump net.py:predict
    graphkb dump net.py:predict --stage raw --format svg -o predict.svg
    graphkb dump net.py:predict --format html -o predict.html      all stages, with what each pass changed
    graphkb dump net.py:predict --stage llvm --shape x=32,64
    graphkb dump net.py:loss --stage simplify
""",
    "compile": """\
examples:
    graphkb compile net.py:predict -o predict.so --prefix predict
    graphkb compile net.py:predict -o predict.so --target x86-64-v3
""",
    "run": """\
examples:
    graphkb run net.py:predict --input x=images.npy -o answers.npy
    graphkb run net.py:predict --input x=[[1,2,3,4],[5,6,7,8]]
    graphkb run net.py:step --input random --size batch=8 --repeat 100
""",
    "profile": """\
examples:
    graphkb profile net.py:predict --size batch=1000
    graphkb profile net.py:step --input x=images.npy -o roofline.svg
""",
    "bench": """\
examples:
    graphkb bench net.py:predict --size batch=1000
    graphkb bench net.py:predict --input x=images.npy --seconds 5
""",
    "doctor": "",
}


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return number


# ---------------------------------------------------------------------------------------------- commands
def _dump(args: argparse.Namespace) -> int:
    stages = stage_names()
    if args.list:
        print("\n".join(stages))
        return 0
    if args.source is None:
        raise UsageError("expected a SOURCE, as in net.py:predict")
    if args.stage not in stages:
        raise UsageError(f"--stage {args.stage}: expected one of {', '.join(stages)}")
    if args.format not in FORMATS:
        raise UsageError(f"--format {args.format}: expected one of {', '.join(FORMATS)}")
    if args.stage in CODE_STAGES and args.format not in ("text", "html"):
        raise UsageError(f"--format {args.format}: the stage {args.stage} is a text, not a graph")
    program, shapes = load_program(args.source), parse_shapes(args.shape)
    try:
        text = dump(program, args.stage, args.format, args.output, shapes)
    except InputError as error:
        if shapes is None and args.stage in CODE_STAGES:
            raise UsageError(f"--stage {args.stage} needs the sizes of all inputs, as in --shape x=32,64") from error
        raise
    if args.output is None:
        # A terminal may not know every letter that a name can have.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    else:
        print(f"wrote {args.output}")
    return 0


def _compile(args: argparse.Namespace) -> int:
    from graphkb.aot import compile as compile_library

    function = load_function(args.source)
    sizes = {}
    for name, text in parse_pairs(args.size, "size", "batch=16").items():
        if not text.isdigit():
            raise UsageError(f"--size {name}={text}: expected a number")
        sizes[name] = int(text)
    made = compile_library(
        function, args.output, prefix=args.prefix, target=args.target, sizes=sizes, threads=args.threads
    )
    for path in (made.library, made.object, made.header):
        if path is not None:
            print(f"wrote {path}")
    return 0


def _run(args: argparse.Namespace) -> int:
    function = _in_mode(load_function(args.source), args.mode)
    if args.output is not None and not args.output.endswith((".npy", ".npz")):
        raise UsageError(f"-o {args.output}: expected a name that ends in .npz or .npy")
    if args.output is not None and args.output.endswith(".npy") and len(function.outputs) != 1:
        raise UsageError(f"-o {args.output}: a .npy file holds one output, {function.name} has {len(function.outputs)}")
    inputs = make_inputs(function, args.input, args.size, args.seed)
    outputs: list[Array] = []
    for _ in range(args.repeat):
        outputs = function(inputs)
    names = _output_names(function)
    if args.output is None:
        for name, array in zip(names, outputs):
            print(f"{name}: {array.dtype}{list(array.shape)}")
            print(np.array2string(array, threshold=200, edgeitems=4))
        for cell, _ in function.updates:
            print(f"{cell.name}: {cell.array.dtype}{list(cell.array.shape)}, updated")
            print(np.array2string(cell.array, threshold=20, edgeitems=2))
    else:
        _save(args.output, names, outputs)
        print(f"wrote {args.output}")
    return 0


def _output_names(function: Function) -> list[str]:
    count = len(function.outputs)
    return ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _save(path: str, names: Sequence[str], outputs: Sequence[Array]) -> None:
    with Path(path).open("wb") as file:
        if path.endswith(".npy"):
            np.save(file, outputs[0])
        else:
            np.savez(file, **dict(zip(names, outputs)))  # type: ignore[arg-type]


def _in_mode(function: Function, mode: str | None) -> Function:
    return function if mode is None else Function(function.definition, options={"mode": mode})


def _bench(args: argparse.Namespace) -> int:
    if not args.seconds > 0:
        raise UsageError("--seconds: expected more than 0")
    source = load_function(args.source)
    # Without --input all inputs are random: for a time their values seldom matter.
    inputs = make_inputs(source, args.input or ["random"], args.size, args.seed)
    modes = [args.mode] if args.mode else ["auto", "interpret"]
    functions = {mode: Function(source.definition, options={"mode": mode}) for mode in modes}
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in inputs)
    print(f"{source.name}({shapes})")
    first: list[Array] | None = None
    calls: dict[str, int] = {}
    for mode, function in functions.items():
        start = time.perf_counter()
        outputs = function(inputs)
        seconds = time.perf_counter() - start
        report = function.report([x.shape for x in inputs])
        print(f"  {mode}: first call {_time(seconds)}; {report.native} native, {report.interpreted} interpreted steps")
        if not source.updates:  # the others would start from other values
            if first is not None:
                print(f"  largest difference between the two: {_difference(first, outputs):.2g}")
            first = outputs
        calls[mode] = _calls_per_batch(function, inputs, args.seconds)
    times: dict[str, list[float]] = {mode: [] for mode in modes}
    end = time.perf_counter() + args.seconds * len(modes)
    while time.perf_counter() < end or len(times[modes[-1]]) < 3:
        for mode, function in functions.items():  # in turn, so that a slow moment of the machine hits all
            start = time.perf_counter()
            for _ in range(calls[mode]):
                function(inputs)
            times[mode].append((time.perf_counter() - start) / calls[mode])
    best = statistics.median(times[modes[0]])
    for mode in modes:
        median = statistics.median(times[mode])
        ratio = f"  {median / best:.2f}x" if len(modes) > 1 else ""
        print(f"  {mode:<10}{_time(median):>10} a call, fastest {_time(min(times[mode]))}{ratio}")
    return 0


def _profile(args: argparse.Namespace) -> int:
    function = _in_mode(load_function(args.source), args.mode)
    made = function.profile(make_inputs(function, args.input or ["random"], args.size, args.seed))
    print(made)
    if args.output is not None:
        made.save(args.output)
        print(f"wrote {args.output}")
    return 0


def _calls_per_batch(function: Function, inputs: Sequence[Array], seconds: float) -> int:
    """How many calls take about a fiftieth of the time, so that the clock's own cost does not count."""
    count = 1
    while True:
        start = time.perf_counter()
        for _ in range(count):
            function(inputs)
        spent = time.perf_counter() - start
        if spent > seconds / 50 or count >= 1 << 20:
            return count
        count *= 2


def _difference(a: Sequence[Array], b: Sequence[Array]) -> float:
    with np.errstate(all="ignore"):
        gaps = [np.abs(np.subtract(x, y, dtype=np.float64)) for x, y in zip(a, b) if x.size]
    return max((float(np.nanmax(gap, initial=0.0)) for gap in gaps), default=0.0)


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _doctor(args: argparse.Namespace) -> int:
    from graphkb.doctor import examine

    found = examine()
    print("\n".join(found.lines))
    return 1 if found.broken else 0
