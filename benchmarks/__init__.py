"""Measurements of this project beside stock Detectron2, or timm, behind ``tools/benchmark.py``.

A module for each sub-command, with ``add_arguments(parser)`` and ``run(args)``, which returns a
report as :mod:`benchmarks.report` describes it.
"""
