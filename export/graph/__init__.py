"""The ONNX graph and the passes over it. Only `to_onnx.py`, which traces, needs torch."""
