"""Processes, memory, signals and background work: what every command runs on."""
