"""Unusual images are trained on; bad ones are skipped in training and end an evaluation."""

import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rsb_d2 import Trainer, UserError
from rsb_d2.data import register_coco_json
from rsb_d2.data.images import BadImageError
from tests.helpers.damaged_files import jpeg, png
from tests.helpers.data.bad_input import (
    CONFIG,
    HEIGHT,
    IMAGES,
    SMALL,
    WIDTH,
    check_training_image,
    edited,
    make_little_config,
)
from tests.helpers.paths import ROOT
from tests.helpers.runs.programs import check_line


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
    "grey": save_image(PLAIN.convert("L"), "JPEG"),
    "alpha": save_image(PLAIN.convert("RGBA")),
    "EXIF rotation": save_image(PLAIN.transpose(Image.Transpose.ROTATE_90), exif=oriented(6)),
}
BAD_IMAGES = {
    "missing since": (lambda path: path.unlink(), "there is no such file"),
    "truncated": (write(jpeg(WIDTH, HEIGHT)[:1200]), "truncated"),
    "of another size": (save_image(PLAIN.resize((96, 63))), "96 x 63 pixels, .*says 96 x 64"),
    "EXIF rotation that was not annotated": (
        save_image(PLAIN, exif=oriented(6)),
        "64 x 96 pixels.*EXIF orientation",
    ),
    "a bomb": (write(png(20000, 20000)), "400000000 pixels"),
    "a folder": (lambda path: path.unlink() or path.mkdir(), "Is a directory"),
}


@pytest.mark.parametrize("kind", GOOD_IMAGES)
def test_unusual_images_are_trained_on_and_evaluated(kind, little_data, caplog):
    for split in ("train", "val"):
        GOOD_IMAGES[kind](little_data / split / IMAGES[2])
    cfg = make_little_config()
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
def test_a_bad_image_is_skipped_in_training_and_ends_an_evaluation(kind, little_data, caplog):
    make, says = BAD_IMAGES[kind]
    cfg = make_little_config()
    register_coco_json(cfg)  # which looks for the files
    for split in ("train", "val"):
        make(little_data / split / IMAGES[2])
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


def test_a_1_x_1_image(little_data):
    for split in ("train", "val"):
        Image.new("RGB", (1, 1), (9, 8, 7)).save(little_data / split / IMAGES[0], "PNG")
        edited(lambda c: c["images"][0].update(width=1, height=1), split)(little_data)
        edited(
            lambda c: [a.update(bbox=[0, 0, 1, 1]) for a in c["annotations"][:2]] and None, split
        )(little_data)
    cfg = make_little_config()
    register_coco_json(cfg)
    images = next(iter(Trainer.build_test_loader(cfg, "mine_val")))
    assert images[0]["image"].shape == (3, 64, 64)
    assert images[0]["image"][:, 5, 5].tolist() == [9, 8, 7]
    batches = iter(Trainer.build_train_loader(cfg))
    seen = [image for _ in range(4) for image in next(batches)]
    [check_training_image(image, cfg) for image in seen]
    assert {i["image"].shape[1] for i in seen if i["image_id"] == 1} == {64}


def test_too_many_bad_images(little_data):
    cfg = make_little_config("DATALOADER.MAX_BAD_IMAGES", "1")
    register_coco_json(cfg)
    for name in IMAGES[:2]:
        (little_data / "train" / name).write_bytes(b"")
    with pytest.raises(UserError, match="more than 1 .*fix the data, .*MAX_BAD_IMAGES"):
        [next(batches) for batches in [iter(Trainer.build_train_loader(cfg))] for _ in range(9)]


def test_no_good_image(little_data):
    cfg = make_little_config()
    register_coco_json(cfg)
    for name in IMAGES:
        (little_data / "train" / name).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used"):
        next(iter(Trainer.build_train_loader(cfg)))


def run_train_net(data, *words):
    return subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(CONFIG), *words],
        cwd=data,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_program_with_a_bad_image(little_data):
    """Trained on the others by two workers; the evaluation at the end stops, with one line."""
    for split in ("train", "val"):
        (little_data / split / IMAGES[1]).write_bytes(b"")
    result = run_train_net(little_data, *SMALL, "DATALOADER.NUM_WORKERS", "2")
    assert result.returncode not in (0, None)
    path = f"{little_data}/train/{IMAGES[1]}"
    assert f"{path}: the file is empty" in result.stdout
    assert (little_data / "output" / "model_final.pth").is_file()
    assert "Traceback" not in result.stdout + result.stderr
    said = result.stderr.strip().splitlines()[-1]
    path = f"{little_data}/val/{IMAGES[1]}"
    assert said == f"train_net.py: error: cannot use the image {path}: the file is empty"
