"""A picture as a 3D scene: the command `lotus-edge scene`."""
