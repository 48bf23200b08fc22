"""A bundle behind HTTP: the command `lotus-edge serve`."""
