"""Start-up: importing the package and building Faster R-CNN, each in a new process.

Stock is Detectron2's own import, config and backbone; ours is `import rsb_d2` and the model of
configs/frcnn_rsb_1x.yaml, on the CPU and without weights.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, List

from .harness import Prepared, verdict

_IMPORT = {"stock": "import detectron2.model_zoo, detectron2.modeling", "ours": "import rsb_d2"}
_CONFIG = {
    "stock": "from detectron2 import model_zoo; zoo, name = model_zoo, '"
    "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml'",
    "ours": "zoo, name = rsb_d2.model_zoo, 'frcnn_rsb_1x.yaml'",
}
_BUILD = """
from detectron2.modeling import build_model
cfg = zoo.get_config(name)
cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
weights = build_model(cfg).state_dict()
print(sum(t.numel() for name, t in weights.items() if not name.endswith("num_batches_tracked")))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def contenders(args: argparse.Namespace) -> List[str]:
    return list(_IMPORT)


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    build = f"{_IMPORT[name]}\n{_CONFIG[name]}{_BUILD}"
    calls = {"import": lambda: _run(_IMPORT[name]), "import and build": lambda: _run(build)}
    return Prepared(calls, lambda: int(_run(build)))


def _run(code: str) -> str:
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def check(args: argparse.Namespace, results: Dict[str, int]) -> str:
    text = f"weights of the models, stock and ours: {results['stock']:,} and {results['ours']:,}"
    return verdict(len(set(results.values())) == 1, text)
