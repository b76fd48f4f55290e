"""Bad data and bad configs of a pretraining, and the error of each."""

import importlib
import logging
import re
import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser

from rsb_d2 import Trainer, UserError
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.config.setup import setup
from rsb_d2.data.images import BadImageError
from rsb_d2.pretraining.data import register_image_folders
from tests.helpers.damaged_files import jpeg, png
from tests.helpers.paths import CONFIGS

WIDTH, HEIGHT = 60, 40
CLASSES = ["a cat", "dög", "emu"]
BASE = [
    *("OUTPUT_DIR", "output", "MODEL.DEVICE", "cpu"),
    *("DATASETS.IMAGE_FOLDER", "[['mine', 'train'], ['mine_val', 'val']]"),
    *("DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine_val',)"),
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.CLASSIFIER.NUM_CLASSES", "3"),
    *("INPUT.CLASSIFIER.TRAIN_SIZE", "32", "INPUT.CLASSIFIER.TEST_SIZE", "32"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1"),
    *("TEST.EVAL_PERIOD", "1"),
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for s, split in enumerate(("train", "val")):
        for c, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(3):
                content = jpeg(WIDTH, HEIGHT, seed=100 * s + 10 * c + i)
                (folder / split / name / f"{i}.jpg").write_bytes(content)
    make_sample_data(str(folder / "boxes"), num_train=1, num_val=1, image_size=64)
    return folder


@pytest.fixture
def data(originals, tmp_path, monkeypatch):
    """A copy of the data, as the working directory, with nothing registered."""
    folder = tmp_path / "data"
    shutil.copytree(originals, folder)
    monkeypatch.chdir(folder)
    before = [dict(DatasetCatalog.data), dict(MetadataCatalog.data)]
    yield folder
    DatasetCatalog.data, MetadataCatalog.data = before


def opts(*words):
    return lambda data: list(words)


def remove(*names):
    return lambda data: [shutil.rmtree(data / name) for name in names] and []


def add(*names, content=b""):
    def make(data):
        for name in names:
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_bytes(content)
        return []

    return make


def link(name, to):
    return lambda data: (data / name).symlink_to(to) and []


def empty(*names):
    return lambda data: [f.unlink() for n in names for f in (data / n).iterdir()] and []


def config(name):
    return lambda data: ["--config-file", str(CONFIGS / name)]


BOXES = "[['boxes', 'boxes/annotations/train.json', 'boxes/train']]"
SMOOTH = ("MODEL.CLASSIFIER.LABEL_SMOOTHING", "0.6", "MODEL.CLASSIFIER.TARGET_THRESH", "0.1")
GROUPS = ("SOLVER.IMS_PER_BATCH", "12", "INPUT.CLASSIFIER.MIX_GROUP", "8")
NO_DEPTH = ("MODEL.TIMM.NAME", "vgg11", "MODEL.CLASSIFIER.DROP_PATH_RATE", "0.1")
FOLDERS, TRAIN, SAMPLER = "DATASETS.IMAGE_FOLDER", "DATASETS.TRAIN", "DATALOADER.SAMPLER_TRAIN"
MADE = {
    "no folder": (remove("train"), "data set mine: .*train: there is no such folder"),
    "no classes": (remove(*(f"train/{n}" for n in CLASSES)), "has no folders; put the images"),
    "an empty class": (empty("train/emu"), r"1 of 3 classes have no image \(emu\); add files"),
    "a class that val lacks": (remove("val/emu"), r"must have the same .* 1 of 3 in mine \(emu\)"),
    "a class that train lacks": (remove("train/emu"), r"in mine_val \(emu\) have no images in"),
    "a broken link": (link("train/emu/9.jpg", "nowhere"), r"1 image files .*emu/9.jpg\); repair"),
    "an empty file in val": (add("val/emu/9.jpg"), r"1 image files are empty \(emu/9.jpg\)"),
    "a detector's config": (
        lambda d: [*config("frcnn_rsb_1x.yaml")(d), "MODEL.WEIGHTS", "", *BASE[:12]],
        "TRAIN: mine has one label an image and no boxes, but GeneralizedRCNN is a detector",
    ),
    "a classifier's key for a detector": (
        lambda d: [*config("frcnn_rsb_1x.yaml")(d), "INPUT.CLASSIFIER.REPEATS", "3"],
        "INPUT.CLASSIFIER.REPEATS is 3, but GeneralizedRCNN is not an image classifier",
    ),
}
# Overrides, and a regular expression of the error.
WORDS = [
    ((FOLDERS, "[['mine', 'train/emu/0.jpg'], ['mine_val', 'val']]"), "0.jpg: is not a folder"),
    ((FOLDERS, "[['a', 'b', 'c']]"), "two strings"),
    ((FOLDERS, "[['mine', 'train'], ['mine', 'val']]"), "mine is registered .*choose another name"),
    ((FOLDERS, "[['coco_2017_val', 'val']]"), "coco_2017_val is the name of another data set"),
    (
        ("MODEL.CLASSIFIER.NUM_CLASSES", "1000"),
        "NUM_CLASSES is 1000, but mine has 3 .*; write .* 3",
    ),
    ((TRAIN, "('imagenet_train',)"), "imagenet/train: there"),
    (
        ("DATASETS.COCO_JSON", BOXES, TRAIN, "('boxes',)"),
        "TRAIN: boxes is not a data set of images",
    ),
    (("INPUT.MIN_SIZE_TEST", "64"), "there is INPUT.CLASSIFIER.TEST_S"),
    (("SOLVER.BEST_METRIC", "bbox/AP50"), "no bbox/AP50; did you"),
    (("MODEL.TIMM.NAME", "resnet51"), "no model 'resnet51'; did you"),
    (("MODEL.BACKBONE.FREEZE_AT", "2"), "FREEZE_AT is 2, .* trains all layers; write 0"),
    (("MODEL.CLASSIFIER.LOSS", "mse"), "LOSS is 'mse'; write bce or ce"),
    (("INPUT.CLASSIFIER.AUTO_AUGMENT", "rend-m7"), "AUTO_AUGMENT is 'rend-m7'"),
    (("INPUT.CLASSIFIER.COLOR_JITTER", "0.4"), "has none with AUTO_AUGMENT"),
    (("INPUT.CLASSIFIER.CROP_SCALE", "[1.0, 0.5]"), "write the lowest and the high"),
    (SMOOTH, "gives each of 3 classes more than TARGET_THRESH 0.1"),
    (NO_DEPTH, "DROP_PATH_RATE: timm's vgg11 has none; write 0.0"),
    (("SOLVER.IMS_PER_BATCH", "5"), "the batch of 5 .* multiple of 2"),
    (GROUPS, "MIX_GROUP 8 must be a multiple of 2, .* and a divisor of the batch of 12"),
    (("SOLVER.ACCUMULATE_STEPS", "3"), "ACCUMULATE_STEPS is 3: SOLVER.IMS_PER_BATCH, .* multiple"),
    ((SAMPLER, "RepeatFactorTrainingSampler"), "SAMPLER_TRAIN is .* has only TrainingSampler"),
]
STOPS = MADE | {" ".join(words)[:60]: (opts(*words), says) for words, says in WORDS}


def read_args(words):
    """Parse the command line of a small pretraining, or of the config that the words name."""
    if "--config-file" in words:
        return default_argument_parser().parse_args(words)
    path = str(CONFIGS / "pretrain" / "resnet50_rsb_sample.yaml")
    return default_argument_parser().parse_args(["--config-file", path, *BASE, *words])


@pytest.mark.parametrize("case", STOPS)
def test_mistakes_stop_the_setup(case, data, monkeypatch):
    make, says = STOPS[case]
    # default_setup configures logging for the complete process.
    module = importlib.import_module("rsb_d2.config.setup")  # not the function of that name
    monkeypatch.setattr(module, "default_setup", lambda *_: pytest.fail("continued"))
    with pytest.raises(UserError) as e:
        setup(read_args(make(data) or []))
    message = str(e.value)
    assert re.search(says, message), message
    assert len(message.splitlines()) == 1 and len(message) < 600
    assert not (data / "output").exists()


# ---- images: training skips bad ones, an evaluation ends ----


def make_cfg(*words):
    args = read_args(list(words))
    cfg = importlib.import_module("rsb_d2.config.loading").load_config(args.config_file, args.opts)
    register_image_folders(cfg)
    return cfg


BAD_IMAGES = {
    "missing since": (lambda path: path.unlink(), "there is no such file"),
    "truncated": (lambda path: path.write_bytes(jpeg(WIDTH, HEIGHT)[:700]), "truncated"),
    "a bomb": (lambda path: path.write_bytes(png(20000, 20000)), "400000000 pixels"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_training_skips_a_bad_image_and_evaluation_stops(kind, data, caplog):
    make, says = BAD_IMAGES[kind]
    cfg = make_cfg()
    for split in ("train", "val"):
        make(data / split / "emu" / "1.jpg")
    batches = iter(Trainer.build_train_loader(cfg))
    for _ in range(6):
        for image in next(batches):
            assert image["image"].shape == (3, 32, 32) and image["image"].dtype == torch.uint8
            assert not image["file_name"].endswith("train/emu/1.jpg")
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    (warning,) = [message for message in warnings if "bad image" in message]  # once
    assert re.search(f"train/emu/1.jpg: .*{says}", warning)
    with pytest.raises(BadImageError, match=f"val/emu/1.jpg: .*{says}"):
        list(Trainer.build_test_loader(cfg, "mine_val"))
