"""Measure bundles and references. Every number the README shows comes from a row in
`benchmarks/results/`.
"""
