"""One run of the benchmarks: choose, set up, measure, print, write JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.harness import Result, Settings, describe, run_job
from benchmarks.peers import PEERS
from benchmarks.peers.base import Peer
from benchmarks.workloads import THEMES, select
from benchmarks.workloads.base import Workload


def run(args: argparse.Namespace) -> int:
    """Run what the command line asks for; returns 0, 1 if graphkb failed or was wrong, or 2 for misuse."""
    if args.list:
        for theme, workloads in THEMES.items():
            print(f"{theme}: {' '.join(w.name for w in workloads)}")
        print(f"peers: {' '.join(p.name for p in PEERS)}")
        return 0
    try:
        workloads, peers = select(args.workloads), select_peers(args.peers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    settings = Settings.quick() if args.quick else Settings()
    if args.limit is not None:
        settings = replace(settings, build_limit_s=args.limit)

    present, absent = set_up(peers, args.threads)
    machine = describe_machine(present, args.threads)
    print(machine_line(machine))
    for name, reason in absent.items():
        print(f"  {name}: {reason}")

    results = measure(workloads, peers, absent, settings)
    print("\n" + table.summary(results))
    if args.json:
        document = {"machine": machine, "settings": asdict(settings), "results": [asdict(r) for r in results]}
        Path(args.json).write_text(json.dumps(document, indent=1) + "\n")
    if args.markdown:
        Path(args.markdown).write_text(table.markdown(machine_line(machine), results), encoding="utf-8")
    return int(any(r.peer == table.OURS and r.state != "ok" for r in results))


def select_peers(names: list[str] | None) -> list[Peer]:
    """The peers of some names, all of them for None; ValueError for an unknown one."""
    known = {peer.name: peer for peer in PEERS}
    for name in names or []:
        if name not in known:
            raise ValueError(f"no peer {name!r}; there are {', '.join(known)}")
    return [peer for name, peer in known.items() if names is None or name in names]


def set_up(peers: Sequence[Peer], threads: int) -> tuple[list[Peer], dict[str, str]]:
    """Import every installed peer; those that take part, and for the others why they do not."""
    present, absent = [], {}
    for peer in peers:
        missing = peer.missing()
        if missing is not None:
            absent[peer.name] = f"not installed (no module {missing})"
            continue
        try:
            peer.setup(threads)
        except Exception as error:
            absent[peer.name] = f"failed to start: {describe(error)}"
        else:
            present.append(peer)
    return present, absent


def measure(
    workloads: Sequence[Workload], peers: Sequence[Peer], absent: dict[str, str], settings: Settings
) -> list[Result]:
    """Run the workloads one by one and print each block as it is done; absent peers get a row too."""
    results: list[Result] = []
    for workload in workloads:
        job = workload.job(peers)
        missing = [Result(job.name, e.peer, "absent", absent[e.peer]) for e in job.entries if e.peer in absent]
        job.entries = [e for e in job.entries if e.peer not in absent]
        done = run_job(job, settings, show_progress) + missing
        show_progress("")
        results += done
        print("\n" + table.block(job.what, done), flush=True)
    return results


def show_progress(text: str) -> None:
    """Rewrite one line on standard error, if that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def describe_machine(peers: Sequence[Peer], threads: int) -> dict[str, Any]:
    """What a reader needs to judge the figures: processor, system, threads, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {peer.name: peer.version() for peer in peers},
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The machine in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return f"{machine['cpu']}, {machine['threads']} thread(s), Python {machine['python']}; {versions}"
