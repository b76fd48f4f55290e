"""A process that has Detectron2 and not this project, and what packages find in it."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np

# The package is found by no import, wherever it is installed; nor does PYTHONPATH name it.
_WITHOUT_RSB_D2 = """
import sys

class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "rsb_d2":
            raise ModuleNotFoundError("no rsb_d2 here")

sys.meta_path.insert(0, NotHere())
try:
    import rsb_d2
except ModuleNotFoundError:
    pass
else:
    sys.exit("rsb_d2 can be imported")
"""


def run_without_rsb_d2(program, folder, *arguments):
    """Run a Python program in a folder; returns the finished process, which must have succeeded."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WITHOUT_RSB_D2 + textwrap.dedent(program)]
        + list(map(str, arguments)),
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# DefaultPredictor on a BGR array, for each package and each image; the results are a JSON file.
DETECT = """
import json, sys
import numpy as np
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

packages, images, output = json.loads(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3]
found = {}
for package in packages:
    cfg = get_cfg()
    cfg.merge_from_file(f"{package}/config.yaml")
    predictor = DefaultPredictor(cfg)
    found[package] = []
    for name in images:
        outputs = predictor(images[name])["instances"]
        one = {
            "boxes": outputs.pred_boxes.tensor.tolist(),
            "scores": outputs.scores.tolist(),
            "classes": outputs.pred_classes.tolist(),
        }
        if outputs.has("pred_masks"):
            one["mask_areas"] = outputs.pred_masks.sum((1, 2)).tolist()
        if outputs.has("pred_keypoints"):
            one["keypoints"] = outputs.pred_keypoints[:, :, :2].tolist()
        found[package].append(one)
json.dump(found, open(output, "w"))
"""


def detect_without_rsb_d2(folder, packages, images):
    """What packages find: for each, by its path, a list of detections of the images.

    Args:
        folder (Path): for files.
        packages (list[Path]): folders.
        images (list[ndarray]): BGR.
    """
    np.savez(folder / "images.npz", *images)
    paths = list(map(str, packages))
    output = folder / "found.json"
    run_without_rsb_d2(DETECT, folder, json.dumps(paths), folder / "images.npz", output)
    return json.loads(output.read_text())
