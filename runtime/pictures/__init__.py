"""From an encoded picture to pixels. `runtime.image.load` is the door; nothing here is asked for
by name from outside.

`formats` knows which formats are read and by which decoder; `containers`, `jpeg`, `png`, `tiff` and
`pnm` read the container and hand the decoder no more than the pixels need; `decode` decodes;
`depth` brings samples of any depth to 8 bits; `colour` makes RGB, in bands.
"""
