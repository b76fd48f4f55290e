"""The commands of the pages, and folders like fresh clones in which they run within seconds."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from typing import List, NamedTuple

import yaml
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from rsb_d2 import Checkpointer
from rsb_d2.addons.workbench.sample import CLASS_NAMES, make_sample_data, make_sample_objects
from rsb_d2.checkpoint import sources

from . import warm_python
from .clips import make_clip
from .fake_hub import add_to_cache, make_weights
from .paths import CONFIGS, ROOT
from .seeded_run import SMALL, make_seeded_config, make_seeded_model, make_seeded_run

PAGES = sorted(
    str(p.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "packaging/*.md")
    for p in ROOT.glob(pattern)
)

_FENCE = re.compile(r"^ *(`{3,}|~{3,}) *(\S*)[^\n]*\n(.*?)^ *\1 *$", re.M | re.S)


class Block(NamedTuple):
    language: str
    text: str


def find_blocks(page: str, *languages: str) -> List[Block]:
    """Return the fenced code blocks of a page in order, of some languages or of all."""
    found = [Block(m[2], m[3]) for m in _FENCE.finditer((ROOT / page).read_text())]
    return [block for block in found if not languages or block.language in languages]


def split_commands(block: str) -> List[str]:
    """Return the commands of a shell block with joined lines; a script is one command."""
    if block.startswith("#!"):
        return [block]
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


# Models, images and schedules of seconds, in the place of the configs' own.
SECONDS = {
    "MODEL": {"TIMM": {"NAME": "resnet18"}, "FPN": {"OUT_CHANNELS": 32}, "DEVICE": "cpu"},
    "SOLVER": {"MAX_ITER": 3, "IMS_PER_BATCH": 8, "WARMUP_ITERS": 1, "STEPS": []},
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
    "DATALOADER": {"NUM_WORKERS": 0},
}
# The same of a pretraining.
PRETRAINING_SECONDS = {
    "MODEL": {"TIMM": {"NAME": "resnet18"}, "DEVICE": "cpu", "CLASSIFIER": {"NUM_CLASSES": 4}},
    "SOLVER": {"MAX_ITER": 3, "WARMUP_ITERS": 0, "IMS_PER_BATCH": 8, "AMP": {"ENABLED": False}},
    "INPUT": {"CLASSIFIER": {"TRAIN_SIZE": 32, "TEST_SIZE": 32}},
    "DATALOADER": {"NUM_WORKERS": 0},
}
# Those that a page has as YAML of its own name, and that would take longer.
SHOWN = {
    "my_config.yaml": [
        SECONDS | {"MODEL": {"DEVICE": "cpu"}},
        {"_BASE_": "configs/frcnn_rsb_1x.yaml", "DATASETS": {"TEST": []}},
    ],
    "my.yaml": [
        {"_BASE_": "configs/frcnn_rsb_1x.yaml", "SOLVER": {"MAX_ITER": 3, "STEPS": []}},
    ],
    "flowers.yaml": [PRETRAINING_SECONDS],
}
# Of COCO's 80 classes, with the weights that timm:// has in the caches.
COCO_MODEL = [*SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", "80", "MODEL.RETINANET.NUM_CLASSES", "80"]
# Of the commands, for the process that is forked for each; see warm_python.
MODULES = ("benchmarks", "onnx", "onnxruntime", "rsb_d2.addons.export", "rsb_d2.addons.predict")
for name in (*MODULES, "rsb_d2.addons.workbench.report", "rsb_d2.evaluation"):
    importlib.import_module(name)
# What these read when they are imported, and a stand-in for published weights.
COMMAND_SETUP = """
from pathlib import Path
from huggingface_hub import constants
from rsb_d2.checkpoint import sources
from rsb_d2.model_zoo import model_zoo
constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = {hub!r}, True
sources.URLS["frcnn_rsb_1x"] = {url!r}
model_zoo._CONFIG_DIRS = (Path({configs!r}),)
"""


class Clones:
    """A folder for each page, and a ``python`` that starts at once.

    Args:
        folder (Path): where to make them.
    """

    def __init__(self, folder):
        self._root = folder
        self._environment = None
        self._package = folder / "package"
        self._make_package()

    def folder(self, page):
        """The folder of a page; made when it is asked for."""
        folder = self._root / page.replace("/", "_")
        if not folder.exists():
            self._make(folder, page)
        return folder

    def run(self, page, command):
        """Run a line of bash as a reader of the page would."""
        if self._environment is None:
            self._environment = self._make_environment()
        return subprocess.run(
            command,
            shell=True,
            executable="/bin/bash",
            cwd=self.folder(page),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def _make_package(self):
        """What is the same for all pages: the programs, and small configs."""
        self._package.mkdir()
        for name in ("rsb_d2", "rsb_d2_cli.py", "benchmarks", "tools", "docs", "train_net.py"):
            (self._package / name).symlink_to(ROOT / name)
        configs = self._package / "configs"
        shutil.copytree(CONFIGS, configs)
        model = nested(COCO_MODEL)
        del model["DATASETS"], model["MODEL"]["WEIGHTS"]
        for name in ("Base-RCNN-FPN-RSB.yaml", "Base-RetinaNet-RSB.yaml"):
            weights = {"MODEL": {"WEIGHTS": "timm://resnet18.a1_in1k"}}
            change(configs / name, model, weights, SECONDS)
        change(configs / "frcnn_rsb_sample.yaml", SECONDS)
        change(configs / "pretrain" / "resnet50_rsb_sample.yaml", PRETRAINING_SECONDS)

    def _make(self, folder, page):
        folder.mkdir()
        programs = ("rsb_d2_cli.py", "tools", "train_net.py")
        for name in ("rsb_d2", "benchmarks", "configs", "docs", *programs):
            (folder / name).symlink_to(self._package / name)
        sample = folder / "datasets" / "rsb_sample"
        make_sample_data(str(sample), num_train=6, num_val=4)
        image = Image.open(sample / "val" / "000001.jpg")
        image.resize((160, 120)).save(folder / "image.jpg")
        make_clip(folder / "clip.mp4", num_frames=4)
        self._add_coco(folder, sample)
        self._add_own_data(folder, sample)
        if "configs/pretrain" in (ROOT / page).read_text():
            for name in ("datasets/rsb_sample_objects", "flowers"):
                make_sample_objects(str(folder / name), num_train=16, num_val=8, image_size=32)
        if (
            "train_net.py --config-file configs/frcnn_rsb_sample.yaml"
            not in (ROOT / page).read_text()
        ):
            self._add_runs(folder)
        for block in find_blocks(page, "yaml"):
            named = re.match(r"# (\S+\.yaml)\n", block.text)
            if not named:
                continue
            name = named[1]
            (folder / name).write_text(block.text)
            if name in SHOWN:
                change(folder / name, *SHOWN[name])

    def _add_coco(self, folder, sample):
        """Images of the sample data under COCO's names."""
        content = json.loads((sample / "annotations" / "val.json").read_text())
        content["categories"] = [c for c in COCO_CATEGORIES if c["isthing"]]
        coco = folder / "datasets" / "coco"
        (coco / "annotations").mkdir(parents=True)
        for split in ("train2017", "val2017"):
            (coco / split).symlink_to(sample / "val")
            path = coco / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(content))

    def _add_own_data(self, folder, sample):
        """What the pages call my data: 12 classes."""
        content = json.loads((sample / "annotations" / "val.json").read_text())
        content["categories"] = [{"id": i, "name": f"thing {i}"} for i in range(1, 13)]
        (folder / "my").mkdir()
        (folder / "my" / "images").symlink_to(sample / "val")
        for split in ("train", "val"):
            (folder / "my" / f"{split}.json").write_text(json.dumps(content))

    def _add_runs(self, folder):
        """What a page takes for granted that was trained: on the sample data, and on COCO."""
        data = "datasets/rsb_sample"
        make_seeded_run(
            folder / "output" / "frcnn_rsb_sample",
            "faster",
            *("MODEL.ROI_HEADS.NUM_CLASSES", str(len(CLASS_NAMES))),
            *("DATASETS.CLASS_NAMES", str(CLASS_NAMES), "DATASETS.CLASS_IDS", "[1, 2, 3, 4]"),
            "DATASETS.COCO_JSON",
            f"[['rsb_sample_val', '{data}/annotations/val.json', '{data}/val']]",
            *("DATASETS.TEST", "('rsb_sample_val',)"),
        )
        Checkpointer(coco_detector(), str(folder / "output")).save("model_final")

    def _make_environment(self):
        """Fill the caches; returns the environment of commands."""
        caches = self._root / "caches"
        (caches / "fvcore").mkdir(parents=True)
        for name in ("resnet18", "resnet50"):
            add_to_cache(caches / "hub", f"{name}.a1_in1k", make_weights(name))
        # Published weights: their config and they themselves are small, and so have another digest.
        Checkpointer(coco_detector(), str(caches)).save("weights")
        content = (caches / "weights.pth").read_bytes()
        name = f"small-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        (caches / "fvcore" / name).write_bytes(content)
        command = self._root / "bin" / "rsb-d2"
        command.parent.mkdir()
        command.write_text(f'#!/bin/bash\nexec python {self._package}/rsb_d2_cli.py "$@"\n')
        command.chmod(0o755)
        programs = (str(command.parent), str(warm_python.path().parent))
        return {
            **os.environ,
            "PYSPARK_PYTHON": sys.executable,
            "PATH": os.pathsep.join([*programs, os.environ["PATH"]]),
            "PYTHONPATH": str(self._package),
            "HF_HUB_CACHE": str(caches / "hub"),
            "HF_HUB_OFFLINE": "1",
            "FVCORE_CACHE": str(caches / "fvcore"),
            "DETECTRON2_DATASETS": "datasets",
            "OMP_NUM_THREADS": "1",
            warm_python.SETUP: COMMAND_SETUP.format(
                hub=str(caches / "hub"),
                url=sources.SERVER + name,
                configs=str(self._package / "configs"),
            ),
        }


def coco_detector():
    return make_seeded_model(make_seeded_config("faster", *COCO_MODEL))


def nested(options):
    """``KEY VALUE`` pairs as a YAML file would have them."""
    tree = {}
    for key, value in zip(options[::2], options[1::2]):
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def merge(config, changes):
    for key, value in changes.items():
        if isinstance(value, dict):
            merge(config.setdefault(key, {}), value)
        else:
            config[key] = value
    return config


def change(path, *changes):
    """Merge changes into a YAML file."""
    config = yaml.safe_load(path.read_text())
    for values in changes:
        merge(config, values)
    path.write_text(yaml.safe_dump(config))
