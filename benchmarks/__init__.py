"""Named workloads that graphkb and its peers run in turn in one process: `python -m benchmarks --help`."""
