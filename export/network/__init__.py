"""The network in PyTorch: the checkpoint as its authors left it, and the single pass over it."""
