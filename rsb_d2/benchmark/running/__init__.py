"""Measurements of whole runs: iterations as users get them, hooks and data included."""
