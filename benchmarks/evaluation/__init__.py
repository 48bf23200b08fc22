"""The data sets and protocols of the paper's tables: `python -m benchmarks.evaluate`."""
