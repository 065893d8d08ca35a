"""Every figure of docs/benchmarks.md, each measured against a peer or a limit in the same run."""
