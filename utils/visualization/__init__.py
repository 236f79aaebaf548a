"""Pictures of what a discriminator sees, and of a degradation."""
