"""`lotus-edge video`: maps of every frame of a film, a folder of pictures or a camera."""
