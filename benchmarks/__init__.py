"""Side-by-side runs against other tools; see `benchmarks.run`."""
