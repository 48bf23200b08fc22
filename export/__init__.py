"""Turn a Lotus checkpoint into a bundle. Needs torch; never imported at run time."""
