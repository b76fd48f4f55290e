"""Detectron2's own data sets, what they need and lack, and its large-scale jitter."""
