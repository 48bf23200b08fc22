"""Damaged pictures and bundles, and what must come of them. The command is `benchmarks.fuzz`."""
