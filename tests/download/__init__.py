"""Planning, sources, fetching and serving."""
