"""Bad data in the layouts of LVIS, VOC and Cityscapes stops with one line before writing files."""

import functools
import json
import os
import re
import shutil

import pytest
from detectron2.engine import default_argument_parser

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from rsb_d2.config.setup import setup
from tests.helpers.data import layouts
from tests.helpers.paths import CONFIGS

pytestmark = pytest.mark.skipif(
    os.environ.get("DETECTRON2_DATASETS", "datasets") != "datasets",
    reason="Detectron2's data sets are elsewhere",
)
BASE = CONFIGS / "Base-RCNN-FPN-RSB.yaml"
SMALL = ("MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet18", "MODEL.WEIGHTS", "")
NAMES = {
    "lvis": ("lvis_v1_train", "lvis_v1_val", 1203),
    "voc": ("voc_2007_trainval", "voc_2007_test", 20),
    "cityscapes": ("cityscapes_fine_instance_seg_train", "cityscapes_fine_instance_seg_val", 8),
    "labels": ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val", 8),
    "coco": ("coco_2017_train", "coco_2017_val", 80),
}
MAKE = {
    "lvis": layouts.make_lvis,
    "voc": layouts.make_voc,
    "cityscapes": layouts.make_cityscapes,
    "labels": layouts.make_cityscapes,
    "coco": layouts.make_coco,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Return the folder of correct data of a kind."""

    @functools.cache
    def make(kind):
        if kind == "lvis":
            pytest.importorskip("lvis")
        if kind in ("cityscapes", "labels"):
            pytest.importorskip("cityscapesscripts")
            pytest.importorskip("shapely")
        folder = tmp_path_factory.mktemp(kind)
        MAKE[kind](folder / "datasets")
        return folder

    return make


def error_of(kind, *opts, eval_only=False):
    train, test, num_classes = NAMES[kind]
    data = ("DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)")
    classes = ("MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes), "OUTPUT_DIR", "output")
    arguments = ["--config-file", str(BASE), *(["--eval-only"] * eval_only)]
    arguments += [*SMALL, *data, *classes, *opts]
    with pytest.raises(UserError) as error:
        setup(default_argument_parser().parse_args(arguments))
    assert "\n" not in str(error.value)
    assert not os.path.exists("output")
    return str(error.value)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without_frequency(root):
    edit(root / "lvis/lvis_v1_val.json", lambda c: c["categories"][5].pop("frequency"))


def without_negatives(root):
    edit(root / "lvis/lvis_v1_val.json", lambda c: c["images"][1].pop("neg_category_ids"))


def remove(pattern, number=0):
    def change(root):
        sorted(root.glob(pattern))[number].unlink()

    return change


def one_image(root):
    (root / "VOC2007/ImageSets/Main/test.txt").write_text("001001\n")


def stray_file(root):
    (root / "cityscapes/leftImg8bit/train/bonn/Thumbs.db").write_bytes(b"")


CASES = {
    "frequency": ("lvis", without_frequency, "lvis_v1_val: .*val.json is without LVIS's frequency"),
    "negatives": ("lvis", without_negatives, "lvis_v1_val: .*image 2 has no 'neg_category_ids'"),
    "annotations": (
        "lvis",
        remove("lvis/lvis_v1_val.json"),
        "lvis_v1_val needs its annotation file",
    ),
    "no list": ("voc", remove("*/ImageSets/Main/test.txt"), "voc_2007_test: there is no list of"),
    "short list": ("voc", one_image, "test.txt lists 1 images; Detectron2 takes two or more"),
    "no XML": ("voc", remove("VOC2007/Annotations/000002.xml"), "1 of its 4 files are missing, .*"),
    "no image": ("voc", remove("VOC2007/JPEGImages/*.jpg"), "voc_2007_trainval: 1 of its 4 files"),
    "no folder": ("voc", lambda root: shutil.rmtree(root / "VOC2007"), "DETECTRON2_DATASETS$"),
    "no polygons": (
        "cityscapes",
        remove("cityscapes/gtFine/val/*/*_polygons.json", 1),
        "cityscapes_fine_instance_seg_val: 1 of its 9 files are missing, .*gtFine_polygons.json$",
    ),
    "a stray file": (
        "cityscapes",
        stray_file,
        r"Thumbs.db is not an image \*_leftImg8bit.png; remove",
    ),
    "no train ids": (
        "labels",
        remove("cityscapes/gtFine/train/*/*_labelTrainIds.png"),
        "labelTrainIds.png; cityscapesscripts makes it: csCreateTrainIdLabelImgs$",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_missing_files(case, originals, tmp_path, monkeypatch):
    kind, change, pattern = CASES[case]
    shutil.copytree(originals(kind) / "datasets", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    change(tmp_path / "datasets")
    assert re.search(pattern, error_of(kind)), error_of(kind)


@pytest.mark.parametrize(
    "kind, opts, pattern",
    [
        ("voc", ["SOLVER.BEST_METRIC", "bbox/APs"], "gives no bbox/APs; did you mean bbox/AP"),
        ("cityscapes", ["SOLVER.BEST_METRIC", "bbox/AP50"], "did you mean segm/AP"),
        ("labels", ["SOLVER.BEST_METRIC", "sem_seg/mIoU"], "did you mean sem_seg/IoU"),
        ("coco", ["SOLVER.BEST_METRIC", "bbox_TTA/AP"], "at the end of the training only"),
        (
            "labels",
            ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"],
            "write MODEL.SEM_SEG_HEAD.NUM_CLASSES 19",
        ),
        (
            "coco",
            ["TEST.AUG.ENABLED", "True", "MODEL.META_ARCHITECTURE", "RetinaNet"],
            "TEST.AUG.ENABLED: .* MODEL.META_ARCHITECTURE is RetinaNet",
        ),
    ],
)
def test_configs_that_do_not_fit_the_data(kind, opts, pattern, originals, monkeypatch):
    monkeypatch.chdir(originals(kind))
    extra = ["TEST.EVAL_PERIOD", "2", "MODEL.RETINANET.NUM_CLASSES", "80"]
    message = error_of(kind, *extra, *opts)
    assert re.search(pattern, message), message


def test_keys_of_detectron2s_main_branch(originals, monkeypatch):
    monkeypatch.chdir(originals("coco"))
    try:
        cfg = load_config("", ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True"])
    except UserError as e:
        assert "this is Detectron2 0.6, which has no federated loss; build" in str(e)
        return
    assert cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS
    message = error_of("coco", "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True")
    assert message.endswith("write MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True, too")
    both = ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True")
    assert "class_image_count" in error_of("coco", *both)
