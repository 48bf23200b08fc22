"""The graph in less than float32: half types, int8, which layers take it, and what it costs the prediction."""
