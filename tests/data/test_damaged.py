"""INPUT.DAMAGED_IMAGES: an error, skipped and counted, or read as far as they go."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image, ImageFile

from rsb_d2 import UserError
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError, read_image
from rsb_d2.data.loader import build_test_loader, build_train_loader
from rsb_d2.engine.hooks import build_validation_loader
from rsb_d2.evaluation import build_evaluator, check_images
from tests.helpers.damaged_files import jpeg, png
from tests.helpers.data.coco_files import HEIGHT, WIDTH, coco_content, make_cfg


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_read_as_far_as_it_goes(tmp_path, monkeypatch, progressive):
    content = jpeg(320, 240, progressive=progressive)
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    expected = read_image(str(path), "RGB")
    assert (read_image(str(path), "RGB", partial=True) == expected).all()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(BadImageError, match="damaged"):
        read_image(str(path), "RGB")
    found = read_image(str(path), "RGB", (320, 240), partial=True)
    assert found.shape == expected.shape
    if progressive:
        assert np.abs(found.astype(int) - expected).mean() < 20
        return
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    pillows = np.asarray(Image.open(path))
    rows = 240 // 2
    assert (found[:rows] == expected[:rows]).all() and (found[:rows] == pillows[:rows]).all()
    assert (found[-8:] == 128).all()


def test_other_damage_is_an_error_with_its_reason(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(5, 5))
    with pytest.raises(BadImageError, match="damaged"):
        read_image(str(path), "RGB", partial=True)
    path.write_bytes(b"")
    with pytest.raises(BadImageError, match="the file is empty"):
        read_image(str(path), "RGB", partial=True)


@pytest.fixture
def cfg(write_coco, images, tmp_path):
    """The image 20 of three is a JPEG that is cut at its end."""
    (images / "20.jpg").write_bytes(jpeg(WIDTH, HEIGHT)[:-600])
    cfg = make_cfg(write_coco(coco_content()), train=["mine"], test=["mine"])
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.DATALOADER.NUM_WORKERS = 0
    register_coco_json(cfg)
    return cfg


@pytest.mark.parametrize("mode", ["auto", "error"])
def test_damaged_test_images_are_an_error_before_the_training(cfg, mode):
    cfg.INPUT.DAMAGED_IMAGES = mode
    with pytest.raises(UserError, match="1 of 3 images of mine cannot be used .*20.jpg: it is dam"):
        check_images(cfg)
    with pytest.raises(BadImageError, match="20.jpg: it is .*write INPUT.DAMAGED_IMAGES skip"):
        list(build_test_loader(cfg, "mine"))


def test_error_ends_a_training_at_the_first_damaged_image(cfg):
    batches = iter(build_train_loader(cfg))
    assert {next(batches)[0]["image_id"] for _ in range(20)} == {10}  # 30 has no objects
    cfg.INPUT.DAMAGED_IMAGES = "error"
    batches = iter(build_train_loader(cfg))
    with pytest.raises(UserError, match="20.jpg.*INPUT.DAMAGED_IMAGES error allows none"):
        for _ in range(20):
            next(batches)


def detect(record):
    """The objects of an image as detections."""
    boxes = [
        BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]
    ]
    found = Instances((record["height"], record["width"]))
    found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    found.scores = torch.ones(len(boxes))
    found.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]]).long()
    return {"instances": found}


def test_skipped_images_are_left_out_with_their_objects_and_counted(cfg, caplog):
    cfg.INPUT.DAMAGED_IMAGES = "skip"
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        check_images(cfg)
    assert "mine: 1 of 3 images are damaged and skipped" in caplog.text
    records = {r["image_id"]: r for r in DatasetCatalog.get("mine")}
    evaluator = build_evaluator(cfg, "mine")
    evaluator.reset()
    ids = []
    for inputs in build_test_loader(cfg, "mine"):
        ids.append(inputs[0]["image_id"])
        evaluator.process(inputs, [detect(records[ids[-1]])])
    assert ids == [10, 30]
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        results = evaluator.evaluate()
    assert results["images"] == {"skipped": 1}
    assert "evaluated on 2 of 3 images; 1 damaged image skipped" in caplog.text
    assert results["bbox"]["AP"] == pytest.approx(100)  # the objects of image 20 are not missed
    assert [b[0]["image_id"] for b in build_validation_loader(cfg)] == [10]


def test_partial_reads_them_in_training_evaluation_and_validation_loss(cfg, caplog):
    cfg.INPUT.DAMAGED_IMAGES = "partial"
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        check_images(cfg)
    assert "mine: 1 of 3 images are damaged and read as far as they go" in caplog.text
    assert [b[0]["image_id"] for b in build_test_loader(cfg, "mine")] == [10, 20, 30]
    assert [b[0]["image_id"] for b in build_validation_loader(cfg)] == [10, 20]
    batches = iter(build_train_loader(cfg))
    assert {next(batches)[0]["image_id"] for _ in range(20)} == {10, 20}


def test_good_images_are_evaluated_as_without_the_key(write_coco, tmp_path):
    figures = []
    for mode in ("auto", "skip", "partial"):
        cfg = make_cfg(write_coco(coco_content()), test=["mine"])
        cfg.OUTPUT_DIR, cfg.INPUT.DAMAGED_IMAGES = str(tmp_path / mode), mode
        register_coco_json(cfg)
        evaluator = build_evaluator(cfg, "mine")
        evaluator.reset()
        for record in DatasetCatalog.get("mine"):
            if record["image_id"] != 20:  # two objects are missed
                evaluator.process([record], [detect(record)])
        figures.append(json.dumps(evaluator.evaluate()))
    assert figures[0] == figures[1] == figures[2] and "images" not in json.loads(figures[0])
