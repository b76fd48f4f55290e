"""Start-up: importing the package and building Faster R-CNN, in fresh interpreters.

Stock is Detectron2's own import, config and backbone; ours is `import rsb_d2` and the model of
configs/frcnn_rsb_1x.yaml without weights. Both are built on the CPU. The processor's seconds are
what other programs disturb less than the clock.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, Dict

from .timing import summarise

_COMMON = """
import json, time
start, cpu_start = time.perf_counter(), time.process_time()
{imports}
from detectron2.config import get_cfg
from detectron2.modeling import build_model
imported, cpu_imported = time.perf_counter(), time.process_time()
cfg = get_cfg()
{config}
cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
model = build_model(cfg)
built, cpu_built = time.perf_counter(), time.process_time()
weights = {{n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}}
numbers = sum(t.numel() for t in weights.values())
cpu = [cpu_imported - cpu_start, cpu_built - cpu_imported]
print(json.dumps([imported - start, built - imported, *cpu, numbers]))
"""
_CODE = {
    "stock": _COMMON.format(
        imports="import detectron2.model_zoo",
        config=(
            "cfg.merge_from_file(detectron2.model_zoo.get_config_file("
            "'COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml'))"
        ),
    ),
    "ours": _COMMON.format(
        imports="import rsb_d2",
        config=(
            "rsb_d2.add_rsb_config(cfg)\n"
            "cfg.merge_from_file(rsb_d2.model_zoo.get_config_file('frcnn_rsb_1x.yaml'))"
        ),
    ),
}
_WHAT = ["whole process", "import", "build", "import, processor", "build, processor"]
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``tools/benchmark.py startup`` has no options of its own."""


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Start both in turn.

    Args:
        args (Namespace): with ``runs``.

    Returns:
        dict: as :mod:`benchmarks.report` describes it.
    """
    for name in _CODE:
        _start(name)  # so that both find their files in the system's cache
    found = {name: [] for name in _CODE}
    for _ in range(args.runs):
        for name in _CODE:
            found[name].append(_start(name))
    rows = [
        {"what": what, **{name: summarise([v[i] for v in found[name]]) for name in _CODE}}
        for i, what in enumerate(_WHAT)
    ]
    numbers = {name: found[name][0][-1] for name in _CODE}
    return {
        "title": "Start-up: import and building Faster R-CNN, ResNet-50 and FPN",
        "settings": {"runs": args.runs},
        "comparison": {
            "passed": len(set(numbers.values())) == 1,
            "text": f"weights of the models built, stock and ours: {list(numbers.values())}",
        },
        "rows": rows,
    }


def _start(name: str) -> tuple:
    paths = [_ROOT, os.environ.get("PYTHONPATH", "")]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CODE[name]],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    whole = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"starting {name} failed:\n{done.stderr}")
    return (whole, *json.loads(done.stdout.splitlines()[-1]))
