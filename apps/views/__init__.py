"""Several pictures with known poses as one 3D scene: `lotus-edge scene BUNDLE --views MODEL`."""
