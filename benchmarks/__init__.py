"""The measurements of BENCHMARKS.md, started by ``tools/benchmark.py`` and ``tools/gpu.py``.

Each module is one benchmark with these functions:

``add_arguments(parser)``
    add its options.
``contenders(args)``
    return the names of the implementations that it compares; the first is the reference.
``prepare(args, name)``
    return the :class:`~benchmarks.harness.Prepared` of one of them.
``check(args, results)``
    compare the results by name; return a sentence about it, or raise
    :class:`~benchmarks.harness.Different`.
"""
