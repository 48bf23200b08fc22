"""Many pictures on one machine or a cluster: the command `lotus-edge batch`."""
