"""A bundle as a model of NVIDIA's Triton Inference Server: the command `lotus-edge triton`."""
