"""Processes, weight files, evaluation, pictures, reports and training."""
