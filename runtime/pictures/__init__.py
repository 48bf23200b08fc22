"""From an encoded picture to pixels. `runtime.image.load` is the door; nothing here is asked for
by name from outside.

`formats` knows which formats are read and by which decoder; `source` opens the file; `jpeg`, `png`,
`tiff`, `pnm`, `gif`, `webp` and `avif` read the container and hand the decoder no more than the
pixels need; `metadata` finds which way up; `decode` decodes; `depth` brings samples of any depth to
8 bits; `colour` makes RGB, in bands.
"""
