"""Measurements of whole runs: a training with its hooks and data, predictions, exported files."""
