"""The commands that make data sets and benchmarks from images."""
