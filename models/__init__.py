"""Networks, losses and the training step."""
