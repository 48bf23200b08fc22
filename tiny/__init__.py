"""The embedded default: renders procedural scenes, trains a small Lotus on them, and stores its
checkpoints.
"""
