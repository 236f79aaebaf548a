"""What training and evaluation stand on: files, processes, logs, scores."""
