"""A page on which anyone tries a bundle: the command `lotus-edge web`."""
