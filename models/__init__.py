"""Networks, losses and the training step. Nothing here opens a file."""
