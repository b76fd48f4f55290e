"""What is measured on a GPU alone, and the command that measures all of it: ``tools/gpu.py``."""
