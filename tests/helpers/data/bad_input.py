"""A small data set, ways to damage it, and the expected error messages."""

import json
import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple

from rsb_d2.config.loading import load_config
from tests.helpers.paths import ROOT
from tests.helpers.runs.programs import check_line

CONFIG = ROOT / "configs" / "frcnn_rsb_sample.yaml"
WIDTH, HEIGHT = 96, 64
IMAGES = ("a picture.jpg", "ärger 画像.jpg", "third.jpg", "4.jpg")
SMALL = [
    *("DATASETS.COCO_JSON", "[['mine', 'train.json', 'train'], ['mine_val', 'val.json', 'val']]"),
    *("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine_val',)"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.DEVICE", "cpu"),
    *("MODEL.TIMM.NAME", "resnet18", "MODEL.WEIGHTS", "", "OUTPUT_DIR", "output"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32", "SEED", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1"),
    *("SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", "0"),
]


def content(num_images=4):
    """Category ids with gaps; the last image has no annotations."""
    annotations = []
    for i in range(num_images - 1):
        x, y, w, h = 10 + i, 12, 40, 30
        annotations += [
            dict(
                id=2 * i + k + 1,
                image_id=i + 1,
                category_id=(3, 90)[k],
                bbox=[x, y, w, h],
                area=w * h,
                iscrowd=0,
                segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
            )
            for k in range(2)
        ]
    return dict(
        images=[
            dict(id=i + 1, file_name=name, width=WIDTH, height=HEIGHT)
            for i, name in enumerate(IMAGES[:num_images])
        ],
        categories=[dict(id=90, name="dog"), dict(id=3, name="cat")],
        annotations=annotations,
    )


def make_little_config(*words):
    return load_config(str(CONFIG), [*SMALL, *words])


# ---- ways of making something bad ----


class Case(NamedTuple):
    """A mistake: its name, a function that makes it in a folder, and the expected regex."""

    name: str
    make: Callable[[Path], Any]
    says: str

    def __str__(self):
        return self.name


def edited(change, split="train"):
    """A way of making data: ``change`` edits the content of an annotation file."""

    def make(data):
        path = data / f"{split}.json"
        whole = json.loads(path.read_text())
        changed = change(whole)
        path.write_text(json.dumps(whole if changed is None else changed))
        return []

    return make


def put(where, **changes):
    """A way of making data: ``changes`` to the first of "images", "annotations", ..."""
    return edited(lambda whole: whole[where][0].update(changes))


def text(words, encoding="utf-8", name="train.json"):
    return lambda data: (data / name).write_bytes(words.encode(encoding)) and []


def opts(*words):
    return lambda data: list(words)


def config_file(words):
    def make(data):
        (data / "bad.yaml").write_text(words)
        return ["--config-file", "bad.yaml"]

    return make


def remove(*names):
    def make(data):
        for name in names:
            path = data / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return []

    return make


MULTI_STEP = ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")


NAN, INFINITY = float("nan"), float("inf")


# ---- what must come of it ----


def check_stop(case, data, train_net):
    """The command stops with one line that says what the case says, and has written nothing."""
    said = train_net(*case.make(data))
    assert said.startswith("train_net.py: error: ")
    check_line(said, case.says)
    assert not (data / "output").exists()
