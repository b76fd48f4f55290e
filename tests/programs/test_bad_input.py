"""Bad inputs to train_net.py and the tools, a row each: what they must say, or do, about it."""

import errno
import importlib.util
import json
import logging
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from PIL import Image

from rsb_d2 import Checkpointer, Trainer, UserError
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError
from tests.helpers.damaged_files import jpeg, png
from tests.helpers.paths import ROOT
from tests.helpers.seeded_run import make_seeded_config, make_seeded_run

CONFIG = ROOT / "configs" / "frcnn_rsb_sample.yaml"
WIDTH, HEIGHT = 96, 64
IMAGES = ("a picture.jpg", "ärger 画像.jpg", "third.jpg", "4.jpg")
SMALL = [
    *("DATASETS.COCO_JSON", "[['mine', 'train.json', 'train'], ['mine_val', 'val.json', 'val']]"),
    *("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine_val',)"),
    *("DATASETS.SAMPLE_DATA", "", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.DEVICE", "cpu"),
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


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for split in ("train", "val"):
        (folder / split).mkdir()
        for i, name in enumerate(IMAGES):
            (folder / split / name).write_bytes(jpeg(WIDTH, HEIGHT, seed=i))
        (folder / f"{split}.json").write_text(json.dumps(content()))
    return folder


@pytest.fixture(scope="module")
def model_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_seeded_run(folder / "run", "faster")
    return folder / "run"


@pytest.fixture
def data(originals, tmp_path, monkeypatch):
    """A copy of the data, which is the working directory; nothing of it is registered."""
    folder = tmp_path / "data"
    shutil.copytree(originals, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]
    yield folder
    DatasetCatalog.data, MetadataCatalog.data = before


# ---- ways of making something bad ----


class Case(NamedTuple):
    """What is bad, how it is made (from the data's folder), and what must be said, as a regex."""

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


def put_all(where, **changes):
    return edited(lambda whole: [record.update(changes) for record in whole[where]] and None)


def text(words, encoding="utf-8", name="train.json"):
    return lambda data: (data / name).write_bytes(words.encode(encoding)) and []


def opts(*words):
    return lambda data: list(words)


def config_file(words):
    def make(data):
        (data / "bad.yaml").write_text(words)
        return ["--config-file", "bad.yaml"]

    return make


class Malicious:
    """What runs a command where it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def save_cut(path):
    torch.save({f"layer{i}.weight": torch.randn(50, 50) for i in range(5)}, path)
    path.write_bytes(path.read_bytes()[:20000])


def save_other_architecture(path):
    import timm

    torch.save(timm.create_model("regnety_002").state_dict(), path)


# ---- stops at once: what train_net.py says before anything is built or written ----


def remove(*names):
    def make(data):
        for name in names:
            path = data / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return []

    return make


MULTI_STEP = ("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR")
NESTED = "[" * 100_000
LONG = json.dumps(content()).replace('"width": 96', '"width": ' + "9" * 5000, 1)
NO_AP = "mine_val has no usable annotation, so AP cannot be computed"
RLE_OF_OTHER_SIZE = dict(segmentation=dict(size=[HEIGHT + 1, WIDTH], counts=[100, HEIGHT * WIDTH]))

STOPS = [
    # Annotation files.
    Case("JSON cut short", text(json.dumps(content())[:500]), "mine: .*train.json: is not valid"),
    Case("JSON of zero bytes", text(" "), "train.json: is not valid JSON"),
    Case("JSON not in UTF-8", text('{"é": 1}', "latin-1"), "is not UTF-8 text; save it"),
    Case("JSON that is a list", text("[1, 2]"), "at the top there must be an object .*not a list"),
    Case("JSON nested deeply", text(NESTED), "nested too deeply"),
    Case("JSON with a number of 5000 digits", text(LONG), "is not valid JSON: .*4300 digits"),
    Case("a key that is not there", edited(lambda c: c.pop("images") and None), "no key 'images'"),
    Case("annotations not a list", edited(lambda c: {**c, "annotations": {}}), "must be a list"),
    Case("images that are texts", edited(lambda c: {**c, "images": ["a.jpg"]}), "list of objects"),
    Case("an image id that is a text", put("images", id="1"), "no 'id' that is an integer"),
    Case("an image id of 70 bits", put("images", id=2**70), "of at most 64 bits"),
    Case("duplicate image ids", put("images", id=2), r"1 ids in 'images' .*more than once \(2\)"),
    Case("duplicate annotation ids", put("annotations", id=2), "1 ids in 'annotations'.*once"),
    Case("duplicate category ids", put("categories", id=3), "1 ids in 'categories' .*once"),
    Case("duplicate category names", put("categories", name="cat"), "category names .*once"),
    Case("a category without a name", put("categories", name=""), "no 'name' that is a text"),
    Case("no images", edited(lambda c: {**c, "images": []}), "'images' is empty"),
    Case("no categories", edited(lambda c: {**c, "categories": []}), "'categories' is empty"),
    Case("width 0", put("images", width=0), "'height' and 'width' that are integers above 0"),
    Case("height a text", put("images", height="64"), "'height' and 'width' that are integers"),
    Case("width of 40 bits", put("images", width=2**40), "'height' and 'width' that are"),
    Case("unknown category", put("annotations", category_id=7), r"not in 'categories' \(ids 7\)"),
    Case("category a text", put("annotations", category_id="cat"), "no 'category_id' that is an"),
    Case("box of three numbers", put("annotations", bbox=[1, 2, 3]), r"\[x, y, width, height\]"),
    Case("box of texts", put("annotations", bbox=list("1234")), r"\[x, y, width, height\], four"),
    Case("box of 400 digits", put("annotations", bbox=[10**400, 1, 2, 3]), "four numbers"),
    Case("iscrowd a text", put("annotations", iscrowd="no"), "'iscrowd' that is not 0 or 1"),
    Case("annotation file missing", remove("train.json"), "there is no such annotation file"),
    Case(
        "annotations a folder",
        lambda d: opts(
            "DATASETS.COCO_JSON", "[['mine', 'train', 'train'], ['mine_val', 'val.json', 'val']]"
        )(d),
        "mine: .*cannot be read: .*directory",
    ),
    # Image files.
    Case("image missing", remove("train/4.jpg"), r"1 of 4 image files are not in .*train \(4.jpg"),
    Case("image folder missing", remove("train"), "4 of 4 image files .*right image folder"),
    Case(
        "file name that leaves the folder",
        put("images", file_name="../val/4.jpg"),
        "leads out of the image folder; write it relative to the folder, without '..'",
    ),
    Case(
        "file name hidden out of the folder",
        put("images", file_name="x/../../val/4.jpg"),
        "leads out of the image folder",
    ),
    Case("absolute file name", put("images", file_name="/etc/passwd"), "out of the image folder"),
    Case("file name with a NUL", put("images", file_name="a\0b.jpg"), r"a\\x00b.jpg"),
    Case("file name of two lines", put("images", file_name="a\nb.jpg"), r"\(a\\nb.jpg\)"),
    Case("file name that is no text", put("images", file_name="\ud800/x.jpg"), r"\\ud800/x.jpg"),
    # Nothing left.
    Case(
        "no annotations to train on",
        edited(lambda c: {**c, "annotations": []}),
        "no usable annotation in mine, so there is nothing to learn",
    ),
    Case("crowds alone", put_all("annotations", iscrowd=1), "nothing to learn"),
    Case("boxes all NaN", put_all("annotations", bbox=[float("nan")] * 4), "nothing to learn"),
    Case("boxes all inverted", put_all("annotations", bbox=[50, 50, -9, -9]), "nothing to learn"),
    Case("a val set without annotations", edited(lambda c: {**c, "annotations": []}, "val"), NO_AP),
    Case(
        "masks all of two points",
        lambda d: (
            put_all("annotations", segmentation=[[1, 1, 9, 9]])(d)
            or opts("MODEL.MASK_ON", "True")(d)
        ),
        "no annotation has a mask that can be used .*polygons",
    ),
    Case(
        "masks all RLE of another size",
        lambda d: (
            put_all("annotations", **RLE_OF_OTHER_SIZE)(d) or opts("MODEL.MASK_ON", "True")(d)
        ),
        "no annotation has a mask that can be used",
    ),
    Case(
        "classes of another number",
        opts("MODEL.ROI_HEADS.NUM_CLASSES", "80"),
        "NUM_CLASSES is 80, but mine has 2 categories .*; write MODEL.ROI_HEADS.NUM_CLASSES 2",
    ),
    # Configs.
    Case("rate 0", opts("SOLVER.BASE_LR", "0.0"), "SOLVER.BASE_LR is 0.0; it must be .*above 0"),
    Case("rate below 0", opts("SOLVER.BASE_LR", "-0.1"), "BASE_LR is -0.1; .*above 0"),
    Case("rate NaN", config_file("SOLVER: {BASE_LR: .nan}"), "BASE_LR is nan; .*above 0"),
    Case("rate infinite", config_file("SOLVER: {BASE_LR: .inf}"), "BASE_LR is inf; .*above 0"),
    Case("rate a text", opts("SOLVER.BASE_LR", "fast"), "Type mismatch .*fast.* SOLVER.BASE_LR"),
    Case("batch 0", opts("SOLVER.IMS_PER_BATCH", "0"), "IMS_PER_BATCH is 0; .*1 or more"),
    Case("batch below 0", opts("SOLVER.IMS_PER_BATCH", "-4"), "IMS_PER_BATCH is -4; .*1 or more"),
    Case("batch 2.5", opts("SOLVER.IMS_PER_BATCH", "2.5"), "Type mismatch .*IMS_PER_BATCH"),
    Case("no iterations", opts("SOLVER.MAX_ITER", "0"), "MAX_ITER is 0; .*1 or more"),
    Case("iterations below 0", opts("SOLVER.MAX_ITER", "-1"), "MAX_ITER is -1; .*1 or more"),
    Case(
        "steps that fall",
        opts(*MULTI_STEP, "SOLVER.MAX_ITER", "90", "SOLVER.STEPS", "(60, 30)"),
        r"STEPS \(60, 30\).*must rise",
    ),
    Case(
        "a step at the end",
        opts(*MULTI_STEP, "SOLVER.STEPS", "(2,)"),
        r"STEPS \(2,\) .*below MAX_ITER",
    ),
    Case("steps of texts", opts("SOLVER.STEPS", "('a',)"), r"STEPS is \('a',\); each value"),
    Case("warm-up below 0", opts("SOLVER.WARMUP_ITERS", "-1"), "WARMUP_ITERS is -1; .*0 or more"),
    Case("schedule unknown", opts("SOLVER.LR_SCHEDULER_NAME", "Cosine"), "Cosine"),
    Case("checkpoints every 0", opts("SOLVER.CHECKPOINT_PERIOD", "0"), "PERIOD is 0; .*1 or more"),
    Case("evaluation every -1", opts("TEST.EVAL_PERIOD", "-1"), "EVAL_PERIOD is -1; .*0 or more"),
    Case("momentum 9", opts("SOLVER.MOMENTUM", "9.0"), "MOMENTUM is 9.0; .*between 0 and 1"),
    Case("decay below 0", opts("SOLVER.WEIGHT_DECAY", "-1.0"), "WEIGHT_DECAY is -1.0; .*0 or more"),
    Case("workers -1", opts("DATALOADER.NUM_WORKERS", "-1"), "NUM_WORKERS is -1; .*0 or more"),
    Case("bad images -1", opts("DATALOADER.MAX_BAD_IMAGES", "-1"), "MAX_BAD_IMAGES is -1; .*0 or"),
    Case("threshold 50", opts("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "50.0"), "between 0 and 1"),
    Case("NMS 1.5", opts("MODEL.RPN.NMS_THRESH", "1.5"), "RPN.NMS_THRESH is 1.5; .*between 0"),
    Case("no classes", opts("MODEL.ROI_HEADS.NUM_CLASSES", "0"), "NUM_CLASSES is 0; .*1 or more"),
    Case("no size", opts("INPUT.MIN_SIZE_TRAIN", "()"), r"MIN_SIZE_TRAIN is \(\); .*lists"),
    Case("size below 0", opts("INPUT.MIN_SIZE_TRAIN", "(-64,)"), "each value .*0 or more"),
    Case("flip unknown", opts("INPUT.RANDOM_FLIP", "both"), "'both'; write horizontal or vertical"),
    Case("seed of 40 bits", opts("SEED", str(2**40)), "SEED is .*below 2.31"),
    Case("PIXEL_STD 0", opts("MODEL.PIXEL_STD", "[0.0, 1.0, 1.0]"), "PIXEL_STD .*above 0"),
    Case("PIXEL_STD of two", opts("MODEL.PIXEL_STD", "[1.0, 1.0]"), "one of each for a channel"),
    Case("device unknown", opts("MODEL.DEVICE", "gpu"), "DEVICE is 'gpu'; write cpu or cuda"),
    Case(
        "architecture misspelt",
        opts("MODEL.META_ARCHITECTURE", "GeneralizedRCNNN"),
        "META_ARCHITECTURE is 'GeneralizedRCNNN'; did you mean GeneralizedRCNN",
    ),
    Case("heads misspelt", opts("MODEL.ROI_HEADS.NAME", "StandardRoIHeads"), "StandardROIHeads"),
    Case("key misspelt", opts("SOLVER.BASE_LRR", "1.0"), "SOLVER.BASE_LRR; did you mean .*BASE_LR"),
    Case("train set unknown", opts("DATASETS.TRAIN", "('mone',)"), "'mone'; did you mean mine"),
    Case(
        "test set unknown", opts("DATASETS.TEST", "('min_val',)"), "TEST: .*did you mean mine_val"
    ),
    Case("test set missing on disk", remove("val.json"), "mine_val: .*no such annotation file"),
    Case(
        "test set of Detectron2's, missing on disk",
        opts("DATASETS.TEST", "('coco_2017_val',)"),
        "coco_2017_val has its annotation file at",
    ),
    Case("no train set", opts("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
    Case("config file missing", lambda d: ["--config-file", "no.yaml"], "there is no file no.yaml"),
    Case("config file that is none", config_file("{"), "bad.yaml: "),
    Case(
        "config file of bytes",
        lambda d: (
            (d / "bad.yaml").write_bytes(b"\xff\xfe\x00\x01") and ["--config-file", "bad.yaml"]
        ),
        "bad.yaml",
    ),
    # Weights.
    Case("weights missing", opts("MODEL.WEIGHTS", "no.pth"), "MODEL.WEIGHTS: there is no file no"),
    Case("weights a folder", opts("MODEL.WEIGHTS", "train"), "train is a folder: name the"),
    # The output folder.
    Case("output folder without a name", opts("OUTPUT_DIR", ""), "OUTPUT_DIR is empty"),
    Case("output folder in a file", opts("OUTPUT_DIR", "val.json/x"), "cannot write to val.json/x"),
]


@pytest.fixture
def train_net(monkeypatch):
    """A function that runs train_net.py in this process; returns what it says when it stops."""
    program = load_program(ROOT / "train_net.py")
    # Setting up the log is for good in a process.
    module = importlib.import_module("rsb_d2.config.setup")  # not the function of that name
    monkeypatch.setattr(module, "default_setup", lambda *_: pytest.fail("went on"))

    def run(*arguments):
        given = ["--config-file", str(CONFIG), *arguments]
        position = max(i for i, word in enumerate(given) if word == "--config-file") + 2
        flags = [word for word in given[position:] if word.startswith("--")]
        words = [word for word in given[position:] if word not in flags]
        base = [*SMALL]
        if given[position - 1] != str(CONFIG):
            base = []  # the mistake is in the file: nothing may override it
        args = default_argument_parser().parse_args([*given[:position], *flags, *base, *words])
        with pytest.raises(SystemExit) as e:
            program.main(args)
        return str(e.value.code)

    return run


def load_program(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    program = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():  # a tool of the command line silences those of its process
        spec.loader.exec_module(program)
    return program


def check_line(said, says):
    assert re.search(says, said), said
    assert len(said.strip().splitlines()) == 1 and len(said) < 900
    assert "Traceback" not in said


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, data, train_net):
    said = train_net(*case.make(data))
    assert said.startswith("train_net.py: error: ")
    check_line(said, case.says)
    assert not (data / "output").exists()


class NoSpace:
    """What the disk says to a file that is opened on it."""

    def __init__(self, number):
        self.number = number

    def __call__(self, *_, **__):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_output_folder_that_takes_nothing(number, data, train_net, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", NoSpace(number))  # as root, one can write
    check_line(train_net(), f"OUTPUT_DIR: cannot write to output: {os.strerror(number)}")


def test_no_room_for_the_corrected_copy(data, train_net, tmp_path):
    put("annotations", area=None)(data)
    (tmp_path / "cache").write_text("a file in the place of the folder")
    check_line(train_net(), "mine: .*train.json: needs a corrected copy, .*FVCORE_CACHE")


# ---- goes on, and says or does what is right ----


def make_cfg(*words):
    return load_config(str(CONFIG), [*SMALL, *words])


class Kept(NamedTuple):
    """What is unusual, how it is made, how many of the 6 objects are left, and what is logged."""

    name: str
    make: Callable[[Path], Any]
    num_objects: int
    says: str

    def __str__(self):
        return self.name


def box(*values):
    return put("annotations", bbox=list(values))


def mask(*segmentation):
    return put("annotations", segmentation=list(segmentation))


NAN, INFINITY = float("nan"), float("inf")
GOES_ON = [
    Kept("spaces, unicode and gaps in the category ids", opts(), 6, ""),
    Kept("crowds", put("annotations", iscrowd=1), 5, ""),
    Kept("'ignore'", put("annotations", ignore=1), 5, "1 with 'ignore' made crowds"),
    Kept("box NaN", box(NAN, 1, 2, 3), 5, r"dropped 1 of 6 .*1 with a box that is not finite"),
    Kept("box infinite", box(1, 1, INFINITY, 3), 5, "1 with a box that is not finite"),
    Kept("box -infinite", box(-INFINITY, 1, INFINITY, 3), 5, "1 with a box that is not finite"),
    Kept("box of 1e308", box(1e308, 1, 1e308, 3), 5, "not finite"),
    Kept("box of no width", box(5, 5, 0, 9), 5, r"1 with a box of no area \(ids: 1\)"),
    Kept("box inverted", box(50, 50, -20, -20), 5, "1 with a box of no area"),
    Kept("box outside", box(200, 200, 9, 9), 5, "1 with a box outside the image"),
    Kept("box negative", box(-30, -30, 9, 9), 5, "1 with a box outside the image"),
    Kept("box partly outside", box(-5, -5, 20, 20), 6, "1 of 6 boxes reach beyond"),
    Kept("of an unknown image", put("annotations", image_id=77), 5, "not in 'images'"),
    Kept("polygon of two points", mask([1, 1, 9, 9]), 6, "1 masks that cannot be used taken out"),
    Kept("polygon of an odd number", mask([1, 1, 9, 1, 9, 9, 5]), 6, "1 masks that cannot"),
    Kept("polygon NaN", mask([1, 1, 9, 1, 9, NAN]), 6, "1 masks that cannot be used"),
    Kept("polygon far away", mask([1, 1, 9, 1, 9, 1e8]), 6, "1 masks that cannot be used"),
    Kept("RLE of another size", put("annotations", **RLE_OF_OTHER_SIZE), 6, "1 masks that cannot"),
    Kept(
        "RLE cut short",
        put("annotations", segmentation=dict(size=[HEIGHT, WIDTH], counts="04")),
        6,
        "1 masks that cannot be used",
    ),
    Kept("mask a text", put("annotations", segmentation="RLE"), 6, "1 masks that cannot be used"),
    Kept(
        "no masks",
        lambda d: edited(lambda c: [a.pop("segmentation") for a in c["annotations"]] and None)(d),
        6,
        "",
    ),
    Kept("area NaN", put("annotations", area=NAN), 6, "1 'area' filled in"),
    Kept("area below 0", put("annotations", area=-5), 6, "1 'area' filled in"),
    Kept("area of 400 digits", put("annotations", area=10**400), 6, "1 'area' filled in"),
    Kept("keypoints of texts", put("annotations", keypoints=list("abc")), 6, "1 keypoints that"),
    Kept("annotation id 0", put("annotations", id=0), 6, "1 ids made positive"),
    Kept("one image alone", edited(lambda c: content(2)), 2, ""),
    Kept(
        "images without annotations",
        edited(lambda c: {**c, "annotations": c["annotations"][:2]}),
        2,
        "",
    ),
    Kept(
        "masks of which one is bad",
        lambda d: mask([1, 1, 9, 9])(d) or opts("MODEL.MASK_ON", "True")(d),
        5,
        "1 without a mask that can be used",
    ),
    Kept("fewer images than the batch", lambda d: opts("SOLVER.IMS_PER_BATCH", "9")(d), 6, ""),
]


@pytest.mark.parametrize("case", GOES_ON, ids=str)
def test_train_net_goes_on(case, data, caplog):
    caplog.set_level(logging.INFO, logger="rsb_d2")
    cfg = make_cfg(*(case.make(data) or []))
    register_coco_json(cfg)
    said = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("rsb_d2"))
    assert re.search(case.says, said) if case.says else not said
    records = DatasetCatalog.get("mine")
    objects = [a for r in records for a in r["annotations"] if not a.get("iscrowd", 0)]
    assert len(objects) == case.num_objects
    batches = iter(Trainer.build_train_loader(cfg))
    for _ in range(4):
        batch = next(batches)
        assert len(batch) == cfg.SOLVER.IMS_PER_BATCH
        for image in batch:
            check_training_image(image, cfg)
    assert "Skipped" not in caplog.text


def check_training_image(image, cfg):
    assert image["image"].dtype == torch.uint8 and image["image"].shape[0] == 3
    instances = image["instances"]
    height, width = instances.image_size
    assert image["image"].shape[1:] == (height, width)
    boxes = instances.gt_boxes.tensor
    assert boxes.isfinite().all() and (boxes >= 0).all()
    assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    classes = instances.gt_classes
    assert ((classes >= 0) & (classes < cfg.MODEL.ROI_HEADS.NUM_CLASSES)).all()
    if cfg.MODEL.MASK_ON and len(instances):
        assert len(instances.gt_masks) == len(instances)


def test_steps_beyond_the_end_are_told(data, caplog):
    from rsb_d2.config.check_values import check_values

    words = [*MULTI_STEP, "SOLVER.STEPS", "(1, 60, 80)", "SOLVER.WARMUP_ITERS", "1000"]
    check_values(make_cfg(*words), eval_only=False)
    steps, warm_up = [r.getMessage() for r in caplog.records]
    assert re.search(r"STEPS \(1, 60, 80\): .*MAX_ITER 2, .*not lowered at 60, 80", steps)
    assert re.search("WARMUP_ITERS 1000: .*MAX_ITER 2, before .*BASE_LR", warm_up)
    caplog.clear()
    check_values(make_cfg(*words), eval_only=True)
    check_values(make_cfg(*MULTI_STEP, "SOLVER.STEPS", "(1,)"), eval_only=False)
    assert not caplog.records


# ---- images: skipped in training, the end of an evaluation ----


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def save_image(image, kind="PNG", **options):
    """A way of making data: in the place of the third image."""
    return lambda path: image.save(path, kind, **options)


def write(image_bytes):
    return lambda path: path.write_bytes(image_bytes)


PLAIN = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
DEEP = Image.fromarray(np.full((HEIGHT, WIDTH), 2**15, dtype=np.uint16))
GOOD_IMAGES = {
    "CMYK": save_image(PLAIN.convert("CMYK"), "JPEG"),
    "16-bit": save_image(DEEP),
    "palette": save_image(PLAIN.quantize(16)),
    "palette with transparency": save_image(PLAIN.quantize(16), transparency=3),
    "grey": save_image(PLAIN.convert("L"), "JPEG"),
    "grey with alpha": save_image(PLAIN.convert("LA")),
    "alpha": save_image(PLAIN.convert("RGBA")),
    "1 bit": save_image(PLAIN.convert("1")),
    "EXIF rotation": save_image(PLAIN.transpose(Image.Transpose.ROTATE_90), exif=oriented(6)),
}
BAD_IMAGES = {
    "missing since": (lambda path: path.unlink(), "there is no such file"),
    "of zero bytes": (write(b""), "the file is empty"),
    "no image": (write(b"<html>"), "it is no image"),
    "truncated": (write(jpeg(WIDTH, HEIGHT)[:1200]), "truncated"),
    "of another size": (save_image(PLAIN.resize((96, 63))), "96 x 63 pixels, .*says 96 x 64"),
    "EXIF rotation that was not annotated": (
        save_image(PLAIN, exif=oriented(6)),
        "64 x 96 pixels.*EXIF orientation",
    ),
    "a bomb": (write(png(20000, 20000)), "400000000 pixels"),
    "floating-point": (save_image(Image.new("F", (WIDTH, HEIGHT)), "TIFF"), "floating-point"),
    "a folder": (lambda path: path.unlink() or path.mkdir(), "Is a directory"),
}


@pytest.mark.parametrize("kind", GOOD_IMAGES)
def test_unusual_images_are_trained_on_and_evaluated(kind, data, caplog):
    for split in ("train", "val"):
        GOOD_IMAGES[kind](data / split / IMAGES[2])
    cfg = make_cfg()
    register_coco_json(cfg)
    batches = iter(Trainer.build_train_loader(cfg))
    seen = set()
    for _ in range(6):
        for image in next(batches):
            check_training_image(image, cfg)
            seen.add(image["image_id"])
    assert 3 in seen and "Skipped" not in caplog.text
    assert len(list(Trainer.build_test_loader(cfg, "mine_val"))) == 4


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_is_skipped_in_training_and_ends_an_evaluation(kind, data, caplog):
    make, says = BAD_IMAGES[kind]
    cfg = make_cfg()
    register_coco_json(cfg)  # which looks for the files
    for split in ("train", "val"):
        make(data / split / IMAGES[2])
    batches = iter(Trainer.build_train_loader(cfg))
    for _ in range(6):
        for image in next(batches):
            check_training_image(image, cfg)
            assert image["image_id"] != 3
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    (told,) = [message for message in told if "bad image" in message]  # once
    assert re.search(f"train/{IMAGES[2]}: .*{says}", told)

    seen = []
    with pytest.raises(BadImageError, match=f"val/{IMAGES[2]}: .*{says}") as e:
        seen += [batch[0]["image_id"] for batch in Trainer.build_test_loader(cfg, "mine_val")]
    check_line(str(e.value), "cannot use the image")


def test_a_1_x_1_image(data):
    for split in ("train", "val"):
        Image.new("RGB", (1, 1), (9, 8, 7)).save(data / split / IMAGES[0], "PNG")
        edited(lambda c: c["images"][0].update(width=1, height=1), split)(data)
        edited(
            lambda c: [a.update(bbox=[0, 0, 1, 1]) for a in c["annotations"][:2]] and None, split
        )(data)
    cfg = make_cfg()
    register_coco_json(cfg)
    images = next(iter(Trainer.build_test_loader(cfg, "mine_val")))
    assert images[0]["image"].shape == (3, 64, 64)
    assert images[0]["image"][:, 5, 5].tolist() == [9, 8, 7]
    batches = iter(Trainer.build_train_loader(cfg))
    seen = [image for _ in range(4) for image in next(batches)]
    [check_training_image(image, cfg) for image in seen]
    assert {i["image"].shape[1] for i in seen if i["image_id"] == 1} == {64}


def test_too_many_bad_images(data):
    cfg = make_cfg("DATALOADER.MAX_BAD_IMAGES", "1")
    register_coco_json(cfg)
    for name in IMAGES[:2]:
        (data / "train" / name).write_bytes(b"")
    with pytest.raises(UserError, match="more than 1 .*mend the data, .*MAX_BAD_IMAGES"):
        [next(batches) for batches in [iter(Trainer.build_train_loader(cfg))] for _ in range(9)]


def test_no_good_image(data):
    cfg = make_cfg()
    register_coco_json(cfg)
    for name in IMAGES:
        (data / "train" / name).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used"):
        next(iter(Trainer.build_train_loader(cfg)))


# ---- the tools ----


def results(change):
    def make(data):
        records = [dict(image_id=1, category_id=3, bbox=[10, 12, 40, 30], score=0.9)]
        changed = change(records)
        text = changed if isinstance(changed, str) else json.dumps(changed or records)
        (data / "results.json").write_text(text)
        return ["--results", "results.json"]

    return make


FILES = ["--annotations", "train.json", "--images", "train"]
RUN = ["--run", "{run}"]


def words(*given, then=lambda data: []):
    """Arguments, and those that ``then`` gives when it has made something bad."""
    return lambda data: [*given, *(then(data) or [])]


def made(make, *given):
    return lambda data: (make(data), list(given))[1]


def bad_weights(write_, *given):
    return lambda data: (write_(data / "bad.pth"), list(given))[1]


def save_html(path):
    path.write_text("<!DOCTYPE html><html>404</html>")


def save_malicious(path):
    path.write_bytes(pickle.dumps({"model": Malicious()}))


def save_malicious_torch(path):
    torch.save({"model": {"weight": torch.zeros(1), "more": Malicious()}}, path)


BAD = ["--weights", "bad.pth", "--output", "out"]
TO = ["bad.pth", "out.pth", "--to", "rsb_d2"]
EXPORT = [*RUN, "--output", "out.onnx"]
TOOLS = {
    "predict": [
        Case("an image that is missing", words(*RUN, "no.jpg"), "there is no image or folder no"),
        Case("a folder without images", words(*RUN, "{run}"), "has no images in it"),
        Case("a pattern that matches nothing", words(*RUN, "*.tif"), r"no file matches \*.tif"),
        Case("a run that is none", words("--run", "train", "train"), "has no config.yaml"),
        Case("threshold 50", words(*RUN, "train", "--threshold", "50"), "between 0 and 1"),
        Case("threshold NaN", words(*RUN, "train", "--threshold", "nan"), "between 0 and 1"),
        Case("batch 0", words(*RUN, "train", "--batch", "0"), "--batch is 0; it must be 1"),
        Case("weights of zero bytes", bad_weights(Path.touch, *RUN, "train", *BAD), "is empty"),
        Case("weights of HTML", bad_weights(save_html, *RUN, "train", *BAD), "is a web page"),
        Case("weights cut short", bad_weights(save_cut, *RUN, "train", *BAD), "cut off or damaged"),
        Case(
            "malicious weights",
            bad_weights(save_malicious, *RUN, "train", *BAD),
            "was not read: .*system, and reading that can run code",
        ),
        Case(
            "malicious weights of torch",
            bad_weights(save_malicious_torch, *RUN, "train", *BAD),
            "was not read: .*system",
        ),
        Case(
            "weights of another architecture",
            bad_weights(save_other_architecture, *RUN, "train", *BAD),
            "bad.pth",
        ),
        Case(
            "an output folder in a file",
            words(*RUN, "train", "--output", "val.json/x"),
            "cannot make the folder val.json/x.*: Not a directory",
        ),
    ],
    "browse_data": [
        Case("JSON cut short", made(text("{"), *FILES), "train.json: is not valid JSON"),
        Case("no image folder", made(remove("train"), *FILES), "there is no folder train"),
        Case("an image that is missing", made(remove("train/4.jpg"), *FILES), "are not in"),
        Case("duplicate ids", made(put("images", id=2), *FILES), "more than once"),
        Case(
            "no annotations",
            made(edited(lambda c: {**c, "annotations": []}), *FILES),
            "no usable annotation",
        ),
        Case("a page with another ending", words(*FILES, "--output", "x.pdf"), "must end in .html"),
    ],
    "report": [
        Case("results cut short", words(*FILES, then=results(lambda r: "[{")), "is not JSON"),
        Case(
            "results that are annotations",
            words(*FILES, "--results", "train.json"),
            "an annotation file is not a results file",
        ),
        Case("results missing", words(*FILES, "--results", "no.json"), "no such results file"),
        Case(
            "a score of NaN",
            words(*FILES, then=results(lambda r: r[0].update(score=NAN))),
            "position 0 has no 'score' that is a finite number",
        ),
        Case(
            "a score of 400 digits",
            words(*FILES, then=results(lambda r: r[0].update(score=10**400))),
            "no 'score'",
        ),
        Case(
            "an unknown image",
            words(*FILES, then=results(lambda r: r[0].update(image_id=9))),
            "results file of another data set",
        ),
        Case(
            "an unknown class",
            words(*FILES, then=results(lambda r: r[0].update(category_id=1))),
            "classes that .* does not have",
        ),
        Case(
            "a mask cut short",
            words(
                *FILES,
                then=results(
                    lambda r: r[0].update(segmentation=dict(size=[HEIGHT, WIDTH], counts="0P0"))
                ),
            ),
            "'counts' do not add up",
        ),
    ],
    "export": [
        Case("an ending that is none", words(*RUN, "--output", "out.pt"), "out.pt"),
        Case(
            "an image of zero bytes",
            lambda d: write(b"")(d / "x.jpg") or [*EXPORT, "--images", "x.jpg"],
            "--images: cannot read x.jpg: the file is empty",
        ),
        Case(
            "weights of zero bytes",
            bad_weights(Path.touch, *EXPORT, "--weights", "bad.pth"),
            "bad.pth is empty",
        ),
        Case("no config", words("--output", "out.onnx"), "name a config"),
    ],
    "convert_weights": [
        Case("of zero bytes", bad_weights(Path.touch, *TO), "is empty .0 bytes"),
        Case("of HTML", bad_weights(save_html, *TO), "is a web page .HTML"),
        Case("cut short", bad_weights(save_cut, *TO), "cut off or damaged"),
        Case("malicious", bad_weights(save_malicious, *TO), "was not read"),
        Case("of another architecture", bad_weights(save_other_architecture, *TO), "bad.pth"),
        Case("missing", words(*TO), "there is no file bad.pth"),
        Case(
            "an ending that is none",
            bad_weights(save_html, "bad.pth", "out.bin", "--to", "rsb_d2"),
            "must end in",
        ),
    ],
}


BAD_WEIGHTS = {
    "of zero bytes": (Path.touch, "is empty .0 bytes"),
    "of HTML": (save_html, "is a web page .HTML"),
    "cut short": (save_cut, "cut off or damaged"),
    "malicious": (save_malicious, "was not read: .*system"),
    "malicious, of torch": (save_malicious_torch, "was not read: .*system"),
    "of another architecture": (save_other_architecture, "bad.pth"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_train_net_with_bad_weights(kind, data):
    save, says = BAD_WEIGHTS[kind]
    save(data / "bad.pth")
    checkpointer = Checkpointer(build_model(make_seeded_config("faster")))
    before = {k: v.clone() for k, v in checkpointer.model.state_dict().items()}
    with pytest.raises(UserError, match=says) as e:
        checkpointer.resume_or_load("bad.pth", resume=False)  # as train_net.py does
    assert "Traceback" not in str(e.value) and len(str(e.value).splitlines()) <= 3
    assert all(torch.equal(before[k], v) for k, v in checkpointer.model.state_dict().items())
    assert not (data / "ran").exists()


@pytest.fixture
def tool(model_run, monkeypatch, capsys):
    """A function that runs a tool: exit status, stdout, the lines of stderr."""

    def run(name, *arguments):
        program = load_program(ROOT / "tools" / f"{name}.py")
        arguments = [word.replace("{run}", str(model_run)) for word in arguments]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        status = program.main()
        captured = capsys.readouterr()
        return status, captured.out, captured.err.strip().splitlines()

    return run


def only_error(name, errors):
    """The line that says what is wrong; beside it there may be some of progress."""
    assert "Traceback" not in "".join(errors)
    assert errors[-1].startswith(f"{name}.py: "), errors
    (line,) = [line for line in errors if line.startswith(f"{name}.py: ")]
    return line


@pytest.mark.parametrize(
    "name, case", [pytest.param(n, c, id=f"{n}: {c}") for n, cases in TOOLS.items() for c in cases]
)
def test_tools_say_what_is_wrong(name, case, data, tool):
    status, out, errors = tool(name, *case.make(data))
    assert status == 2 and out == ""
    check_line(only_error(name, errors), case.says)
    assert not (data / "ran").exists() and not list(data.glob("out*"))


@contextmanager
def disk_that_is_full(size=2000):
    """No file of this process can grow beyond this size in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL = {
    "predict": [*RUN, "train/4.jpg", "--threshold", "0.3", "--output", "out"],
    "browse_data": [*FILES, "--output", "out.html"],
    "report": [*FILES, "--results", "results.json", "--output", "out.html"],
    "convert_weights": ["{run}/model_final.pth", "out.pth", "--to", "timm"],
    "export": [*RUN, "--images", "train/4.jpg", "--output", "out.onnx"],
}


@pytest.mark.parametrize("name", FULL)
def test_tools_on_a_full_disk(name, data, tool, monkeypatch):
    # Runs of other tests in this process may still have their log files open.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    results(lambda records: None)(data)
    with disk_that_is_full():
        status, out, errors = tool(name, *FULL[name])
    assert status == 2
    check_line(only_error(name, errors), "cannot write .*out.*File too large")
    assert not [path for path in data.glob("out*") if path.is_file()]


def test_a_bad_image_among_good_ones(data, tool):
    (data / "train" / IMAGES[1]).write_bytes(b"")
    status, out, errors = tool("predict", *RUN, "train", "--output", "out")
    assert status == 1 and "3 images" in out and "1 skipped" in out
    assert any(f"skipped train/{IMAGES[1]}: the file is empty" in line for line in errors)
    status, out, errors = tool("browse_data", *FILES, "--output", "out.html")
    assert status == 0 and "error" not in "".join(errors)


# ---- the program itself ----


def run_train_net(data, *words):
    return subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(CONFIG), *words],
        cwd=data,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_program_with_a_bad_image(data):
    """Trained on the others by two workers; the evaluation at the end stops, with one line."""
    for split in ("train", "val"):
        (data / split / IMAGES[1]).write_bytes(b"")
    result = run_train_net(data, *SMALL, "DATALOADER.NUM_WORKERS", "2")
    assert result.returncode not in (0, None)
    path = f"{data}/train/{IMAGES[1]}"
    assert f"{path}: the file is empty" in result.stdout
    assert (data / "output" / "model_final.pth").is_file()
    assert "Traceback" not in result.stdout + result.stderr
    said = result.stderr.strip().splitlines()[-1]
    path = f"{data}/val/{IMAGES[1]}"
    assert said == f"train_net.py: error: cannot use the image {path}: the file is empty"
