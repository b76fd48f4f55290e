"""The metadata of an exported file, and the examples of the documentation."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from PIL import Image

from rsb_d2.addons.export import run_onnx
from rsb_d2.addons.export.export import fit
from rsb_d2.addons.export.files import run_model
from rsb_d2.addons.workbench.sample.draw import draw_picture
from rsb_d2.predictor import Predictor
from tests.helpers.models.exporting import (
    NAMES,
    THRESHOLD,
    pictures,
    small,
)
from tests.helpers.paths import ROOT
from tests.helpers.seeded_run import CLASSES, IDS, make_seeded_config


def test_the_contract_is_in_the_file(exported):
    _, result = exported("mask")
    session = pytest.importorskip("onnxruntime").InferenceSession(result.path)
    about = session.get_modelmeta().custom_metadata_map
    assert about == result.contract
    assert about["input_channels"] == "RGB" and about["input_dtype"] == "uint8"
    assert json.loads(about["class_names"]) == CLASSES and json.loads(about["class_ids"]) == IDS
    assert (about["resize_short_side"], about["resize_long_side_max"]) == ("96", "160")
    assert about["score_threshold"] == "0.3" and about["max_detections"] == "100"
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["height", "width", 3]
    assert [o.name for o in session.get_outputs()] == ["boxes", "scores", "classes", "masks"]


def test_the_documented_paste_is_detectron2s(exported):
    _, result = exported("mask")
    text = (ROOT / "docs" / "deployment.md").read_text()
    block = next(b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "def paste" in b)
    namespace = {}
    exec(block, namespace)
    image = small(make_seeded_config("mask"), pictures())[0]
    found = run_onnx(result.path)(image)
    height, width = image.shape[:2]
    expected = paste_masks_in_image(
        torch.tensor(found.masks), torch.tensor(found.boxes), (height, width)
    ).numpy()
    assert len(found) >= 5 and expected.any()
    for mask, box, pasted in zip(found.masks, found.boxes, expected):
        difference = namespace["paste"](mask, box, (width, height)) != pasted
        assert difference.sum() <= 2  # of pixels at 0.5 to the last digit


# ---- the example of the documentation ----


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """An import path of onnxruntime, NumPy, Pillow and what these need, and nothing else."""
    from importlib.metadata import distribution, requires

    folder = tmp_path_factory.mktemp("import_path")
    todo, done = ["onnxruntime", "numpy", "pillow"], set()
    while todo:
        name = todo.pop()
        if name.lower() in done:
            continue
        done.add(name.lower())
        for file in distribution(name).files:
            top = file.parts[0]
            source = Path(distribution(name).locate_file(top))
            if ".." not in file.parts and not (folder / top).exists() and top != "__pycache__":
                (folder / top).symlink_to(source)
        for requirement in requires(name) or []:
            if "extra ==" not in requirement:
                todo.append(re.match(r"[\w.-]+", requirement).group())
    return folder


def run_without_torch(without_torch, *arguments):
    # -S: no site-packages, so that PYTHONPATH is all there is besides the standard library.
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        env={**os.environ, "PYTHONPATH": str(without_torch), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_example_runs_without_torch_and_finds_the_same(exported, without_torch, tmp_path):
    for module in ("torch", "detectron2", "rsb_d2"):
        result = run_without_torch(without_torch, "-c", f"import {module}")
        assert "ModuleNotFoundError" in result.stderr
    model, result = exported("faster")
    image = draw_picture(np.random.default_rng(1), 300)[0]
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6  # a camera held upright
    Image.fromarray(np.ascontiguousarray(np.rot90(image))).save(path, exif=exif, quality=95)
    example = run_without_torch(
        without_torch, str(ROOT / "docs" / "run_onnx.py"), result.path, str(path)
    )
    assert example.returncode == 0, example.stderr

    predictor = Predictor(make_seeded_config("faster", *THRESHOLD), model, NAMES)
    from detectron2.data.detection_utils import read_image

    (instances,) = predictor([predictor.prepare(read_image(str(path), "RGB"))])
    lines = example.stdout.splitlines()
    assert len(lines) == len(instances) >= 3
    for line, box, score, i in zip(
        lines, instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    ):
        name, printed_score, printed_box = line.split(" ", 2)
        assert name == CLASSES[i]
        assert float(printed_score) == pytest.approx(float(score), abs=2e-3)
        assert json.loads(printed_box) == pytest.approx(box.tolist(), abs=0.11)


def test_the_openvino_example_of_the_documentation(exported, fixed_openvino, tmp_path):
    """An ONNX file of any size, and a file of OpenVINO's own format of one size."""
    picture = draw_picture(np.random.default_rng(1), 300)[0][:225, :200]
    Image.fromarray(picture).save(tmp_path / "image.png")
    model, free = exported("faster")
    _, one_size = fixed_openvino
    resized = np.array(Image.fromarray(picture).resize((96, 108), Image.Resampling.BILINEAR))
    for result, image in ((free, resized), (one_size, fit(picture, (100, 170), (124, 116, 104)))):
        example = subprocess.run(
            [
                *(sys.executable, str(ROOT / "docs" / "run_openvino.py")),
                *(result.path, str(tmp_path / "image.png")),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert example.returncode == 0, example.stderr
        expected = run_model(model)(image)
        lines = example.stdout.splitlines()
        assert len(lines) == len(expected) >= 3
        scale = 225 / (108 if result is free else 100)
        for line, box, score, i in zip(lines, expected.boxes, expected.scores, expected.classes):
            name, printed_score, printed_box = line.split(" ", 2)
            assert name == CLASSES[i] and float(printed_score) == pytest.approx(score, abs=2e-3)
            assert json.loads(printed_box) == pytest.approx((box * scale).tolist(), abs=1.5)
