"""Writing a bundle: staged folder, golden sample, finished manifest, what a graph costs."""
