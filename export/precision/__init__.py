"""The graph in less than float32: half types, int8 weights, and what finds out where they do not do."""
