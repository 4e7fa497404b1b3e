"""Command line of the benchmarks: `python -m benchmarks [workload or theme ...]`."""

from __future__ import annotations

import argparse
import os
import sys


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Run named workloads on graphkb and on every installed peer, in turns, in one process. "
        "Every answer is checked against float64 NumPy before its time counts.",
    )
    parser.add_argument("workloads", nargs="*", metavar="workload", help="names or themes (default: all; see --list)")
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="only these contestants")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads, and processors, for each contestant: "
        "by its own setting, and by affinity for those that have none, such as XLA (default: 1)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write everything there")
    parser.add_argument("--markdown", metavar="FILE", help="also write a table of all medians there")
    parser.add_argument("--quick", action="store_true", help="short batches: a first look, not a measurement")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="give up on a build after this time")
    parser.add_argument("--list", action="store_true", help="list workloads and peers, and stop")
    return parser.parse_args(argv)


def limit_threads(threads: int) -> None:
    """Keep this process to `threads` CPUs; before any library is imported, for most read these once."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA", "NUMEXPR", "GRAPHKB")
    os.environ.update({f"{name}_NUM_THREADS": str(threads) for name in names})
    os.environ["NUMEXPR_MAX_THREADS"] = str(threads)
    # Affinity holds for those that have no setting of their own, XLA among them.
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:threads])


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.threads < 1:
        print(f"--threads {args.threads}: at least 1 is needed", file=sys.stderr)
        return 2
    limit_threads(args.threads)
    from benchmarks.session import run  # after the limits: it imports NumPy

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
