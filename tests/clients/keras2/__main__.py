"""`python -m tests.clients.keras2`: the tests of Keras 2.3.1, or with --examples its example programs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path


def main() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(prog="python -m tests.clients.keras2", description=__doc__)
    parser.add_argument("--mode", choices=("auto", "native", "interpret"), default="auto", help="how graphkb runs them")
    parser.add_argument(
        "--only", metavar="PATTERN", action="append", default=[], help="ids or scripts that match or contain this"
    )
    parser.add_argument("--jobs", type=int, default=cores, help="how many processes run at a time")
    parser.add_argument("--json", metavar="FILE", help="write what became of each test to a file")
    parser.add_argument("--sdist", metavar="FOLDER", help="an unpacked source distribution, instead of fetching it")
    parser.add_argument("--examples", action="store_true", help="run the example programs instead of the tests")
    args = parser.parse_args()
    start = time.perf_counter()
    if args.examples:
        from tests.clients.keras2.examples import run_examples

        reports = {"examples": run_examples(args.mode, args.only, args.jobs, args.sdist)}
    else:
        from tests.clients.keras2.suite import run_suite, summarize

        reports = run_suite(args.mode, args.only, args.jobs, args.sdist)
        print(summarize(reports))
    outcomes = [outcome for report in reports.values() for outcome in report]
    passed = sum(outcome.outcome == "passed" for outcome in outcomes)
    retried = sum(outcome.outcome == "retried" for outcome in outcomes)
    when_retried = f" and {retried} when retried" if retried else ""
    seconds = time.perf_counter() - start
    print(f"{passed} of {len(outcomes)} passed{when_retried} in {seconds:.0f} s, mode {args.mode}")
    if args.json:
        content = {label: [asdict(outcome) for outcome in report] for label, report in reports.items()}
        Path(args.json).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0 if outcomes and passed + retried == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
