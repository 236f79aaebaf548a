"""A training run: what it needs before the first step, the loop, and what it writes."""
