"""The sample data's single objects: layout, that they repeat, and what they show."""

import hashlib
import importlib
import json
import os

import cv2
import numpy as np
import pytest
from detectron2.engine import default_argument_parser
from PIL import Image
from torchvision.datasets import ImageFolder

from rsb_d2 import UserError
from rsb_d2.addons.workbench.sample import CLASS_NAMES, make_sample_data, make_sample_objects
from rsb_d2.config.setup import setup
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.paths import CONFIGS

SMALL = dict(num_train=30, num_val=9, image_size=64)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "objects"
    make_sample_objects(str(folder), **SMALL)
    return folder


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


def test_layout(objects):
    assert sorted(os.listdir(objects)) == ["sample.json", "train", "val"]
    for split in ("train", "val"):
        found = ImageFolder(str(objects / split))
        assert found.classes == sorted(CLASS_NAMES)
        assert len(found) == SMALL[f"num_{split}"]
        counts = np.bincount(found.targets)
        assert counts.max() - counts.min() <= 1
        assert {image.size for image, _ in found} == {(64, 64)}


def test_the_same_arguments_give_the_same_bytes(objects, tmp_path):
    make_sample_objects(str(tmp_path / "a"), **SMALL)
    make_sample_objects(str(tmp_path / "b"), **SMALL, seed=3)
    one, other, of_another_seed = map(digests, (objects, tmp_path / "a", tmp_path / "b"))
    assert one == other and not set(one.values()) & set(of_another_seed.values())
    assert len(set(one.values())) == len(one) == 39  # also val is not of train


def test_they_are_of_other_pictures_than_the_detectors(objects, tmp_path):
    assert json.loads((objects / "sample.json").read_text())["seed"] != 0
    make_sample_data(str(tmp_path / "a"), num_train=2, num_val=2, image_size=160)
    seed = json.loads((tmp_path / "a" / "sample.json").read_text())["seed"]
    assert seed != json.loads((objects / "sample.json").read_text())["seed"]


def test_a_class_can_be_told(tmp_path):
    """The nearest neighbour of its outline's moments says the class more often than chance."""
    make_sample_objects(str(tmp_path / "o"), num_train=240, num_val=60, image_size=64)

    def features(split):
        found = ImageFolder(str(tmp_path / "o" / split))
        rows = []
        for image, _ in found:
            grey = cv2.GaussianBlur(np.asarray(image.convert("L"), np.float32), (5, 5), 0)
            dx, dy = np.gradient(grey)
            angle, size = np.arctan2(dy, dx), np.hypot(dx, dy)
            rows.append(np.histogram(angle, 24, (-np.pi, np.pi), weights=size)[0] / size.sum())
        return np.array([np.abs(np.fft.rfft(row)) for row in rows]), np.array(found.targets)

    (known, labels), (asked, truth) = features("train"), features("val")
    distances = np.abs(known[None] - asked[:, None]).sum(-1)
    nearest = labels[distances.argsort(1)[:, :7]]
    votes = np.array([np.bincount(row, minlength=4).argmax() for row in nearest])
    assert (votes == truth).mean() > 0.4  # 0.25 by chance


def test_it_is_made_where_it_is_missing_and_left_alone_where_it_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_sample_objects("made", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "made").rglob("*.jpg")}
    make_sample_objects("made", **SMALL)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "made").rglob("*.jpg")} == before
    next((tmp_path / "made" / "val" / "star").iterdir()).unlink()
    make_sample_objects("made", **SMALL)
    assert len(digests(tmp_path / "made")) == 39


def test_bad_arguments(tmp_path):
    for arguments, says in (
        (dict(num_train=3), "num_train is 3; it must be an integer of 4 or more"),
        (dict(image_size=8), "image_size is 8; it must be an integer from 16 to 160"),
        (dict(seed=-1), "seed is -1"),
    ):
        with pytest.raises(UserError, match=says):
            make_sample_objects(str(tmp_path / "x"), **arguments)
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "mine" / "holiday.png")
    with pytest.raises(UserError, match="holds what is not sample data .holiday.png"):
        make_sample_objects(str(tmp_path / "mine"))
    assert os.listdir(tmp_path / "mine") == ["holiday.png"]


def test_setup_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("rsb_d2.addons.workbench.sample")
    made = []

    def make(folder):
        made.append(folder)
        make_sample_objects(folder, **SMALL)

    monkeypatch.setattr(module, "make_sample_objects", make)
    path = str(CONFIGS / "pretrain" / "resnet50_rsb_sample.yaml")
    words = ["--config-file", path, "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet18"]
    with catalogs_kept():
        cfg = setup(default_argument_parser().parse_args(words))
    assert made == [cfg.DATASETS.SAMPLE_OBJECTS] == ["datasets/rsb_sample_objects"]
    assert cfg.DATASETS.CLASS_NAMES in ([], sorted(CLASS_NAMES))
