"""The losses of training, each a function or a module."""
