"""Exported files: what they compute, what they say of themselves, and when there is none."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms, paste_masks_in_image
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from PIL import Image
from torch import nn
from torchvision.ops import boxes as box_ops

from rsb_d2 import UserError
from rsb_d2.data.class_names import ClassNames
from rsb_d2.data.sample.draw import draw_picture
from rsb_d2.export import (
    Detections,
    compare,
    export_detector,
    make_dataflow,
    run_onnx,
    run_torch_export,
    run_torchscript,
)
from rsb_d2.export.export import check_output
from rsb_d2.export.images import comparison_images
from rsb_d2.export.nms import batched_nms_in_double, traceable_nms
from rsb_d2.export.running import run_model
from rsb_d2.predict.predictor import Predictor, load_detector, load_predict_config
from tests.helpers.paths import ROOT
from tests.helpers.seeded_run import (
    CLASSES,
    IDS,
    make_seeded_config,
    make_seeded_model,
    make_seeded_run,
)

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

THRESHOLD = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.3"]
NAMES = ClassNames(tuple(CLASSES), tuple(IDS))


def pictures(number=2, size=200):
    return [draw_picture(np.random.default_rng(i), size)[0] for i in range(number)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that exports each kind of model once."""
    folder, done = tmp_path_factory.mktemp("exported"), {}

    def export(kind, suffix="onnx"):
        if (kind, suffix) not in done:
            sizes = ["INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "224"]
            large = sizes if (kind, suffix) == ("retinanet", "pt2") else []
            cfg = make_seeded_config(kind, *THRESHOLD, *large)
            model = make_seeded_model(cfg)
            path = str(folder / f"{kind}.{suffix}")
            done[kind, suffix] = model, export_detector(cfg, model, NAMES, path, pictures())
        return done[kind, suffix]

    return export


@pytest.mark.parametrize("kind", ["faster", "mask", "retinanet"])
def test_onnx_computes_what_the_model_does(exported, kind):
    model, result = exported(kind)
    assert len(set(result.sizes)) >= 3
    assert result.difference.detections >= 10
    assert result.difference.box < 0.1 and result.difference.score < 1e-3
    onnx, torch_model = run_onnx(result.path), run_model(model)
    total = 0
    for seed, size in enumerate([(32, 32), (33, 250), (301, 77), (160, 224)]):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = torch_model(image)
        difference = compare(expected, onnx(image), 0.3, 100)
        assert difference.box < 1e-2 and difference.score < 1e-4 and difference.mask < 1e-4
        assert (expected.masks is not None) == (kind == "mask")
        total += difference.detections
    assert total >= 20  # a comparison of nothing proves nothing


@pytest.mark.slow
def test_cascade_mask_rcnn_is_exported_too(exported):
    _, result = exported("cascade")
    assert result.difference.detections >= 5


@pytest.mark.parametrize("kind", ["faster", pytest.param("mask", marks=pytest.mark.slow)])
def test_torchscript_computes_what_the_model_does(exported, kind):
    model, result = exported(kind, "ts")
    image = np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8)
    difference = compare(run_model(model)(image), run_torchscript(result.path)(image), 0.3, 100)
    assert difference.detections >= 5
    about = {"metadata.json": ""}
    torch.jit.load(result.path, _extra_files=about)
    assert json.loads(about["metadata.json"]) == result.contract


@pytest.mark.parametrize(
    "kind",
    [
        "faster",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("mask", "cascade", "retinanet")),
    ],
)
def test_torch_export_computes_what_the_model_does(exported, kind):
    model, result = exported(kind, "pt2")
    assert result.difference.detections >= 5 and len(set(result.sizes)) >= 3
    min_side = 129 if kind == "retinanet" else 65
    assert result.contract["input_min_side"] == str(min_side)
    program, torch_model = run_torch_export(result.path), run_model(model)
    total = 0
    for seed, size in enumerate([(min_side, min_side), (min_side + 1, 257), (301, 160)]):
        image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = torch_model(image)
        difference = compare(expected, program(image), 0.3, 100)
        assert difference.box < 1e-3 and difference.score < 1e-5 and difference.mask < 1e-5
        assert (expected.masks is not None) == (kind in ("mask", "cascade"))
        total += difference.detections
    assert total >= 20
    about = {"metadata.json": ""}
    torch.export.load(result.path, extra_files=about)
    assert json.loads(about["metadata.json"]) == result.contract


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade", "stock cascade", "retinanet"])
@pytest.mark.parametrize("threshold", ["0.3", "1.0"])
def test_dataflow_is_detectron2s_inference(kind, threshold):
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold]
    opts += ["MODEL.RETINANET.SCORE_THRESH_TEST", threshold]
    if kind.startswith("stock"):
        opts += ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]
    model = make_seeded_model(make_seeded_config(kind.split()[-1], *opts)).requires_grad_(False)
    expected, dataflow = run_model(model), make_dataflow(model)
    for image in pictures(2, 160):
        found = Detections(*(o.numpy() for o in dataflow(torch.from_numpy(image))))
        difference = compare(expected(image), found, float(threshold), 100)
        assert difference.box < 1e-3 and difference.score < 1e-5 and difference.mask < 1e-5
        assert (difference.detections >= 3) == (threshold == "0.3")


def test_what_torch_export_cannot_take(tmp_path):
    cfg = make_seeded_config("retinanet", *THRESHOLD)  # whose images get 96 pixels, of 129
    model = make_seeded_model(cfg)
    with pytest.raises(UserError, match="resized to 96 x 96, .* of 129 pixels or more"):
        export_detector(cfg, model, NAMES, str(tmp_path / "m.pt2"), [np.zeros((9, 9, 3), np.uint8)])

    class OtherHeads(StandardROIHeads):
        pass

    model = make_seeded_model(make_seeded_config("faster"))
    model.roi_heads.__class__ = OtherHeads
    with pytest.raises(UserError, match="OtherHeads cannot be exported with torch.export"):
        make_dataflow(model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_an_image_without_detections(tmp_path, kind):
    # With a threshold that the images to compare on exceed, and another image does not.
    cfg = make_seeded_config(kind, *THRESHOLD)
    model = make_seeded_model(cfg)
    scores = [run_model(model)(image).scores.max(initial=0) for image in small(cfg, pictures(4))]
    best, worst = int(np.argmax(scores)), int(np.argmin(scores))
    threshold = (max(scores) + min(scores)) / 2
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = float(threshold)
    model = make_seeded_model(cfg)
    path = str(tmp_path / "model.onnx")
    export_detector(cfg, model, NAMES, path, [pictures(4)[best]])
    image = small(cfg, pictures(4))[worst]
    assert len(run_model(model)(image)) == len(run_onnx(path)(image)) == 0


def small(cfg, images):
    predictor = Predictor(cfg, None, NAMES)
    return [predictor.prepare(i)["image"].permute(1, 2, 0).numpy().copy() for i in images]


# ---- many classes ----


def close_boxes(rows):
    """(rows, 80, 4): in each class two pairs at an overlap of nearly 0.5, and boxes apart.

    A box and another of its width w, d to the right of it, overlap by (w - d) / (w + d): by 0.5
    if d is w / 3. Rounded to 1/128, as by the shift of a high class, 33.333 is more than 100 / 3
    and 33.668 is less than 101 / 3.
    """
    boxes = [[10, 0, 110, 30], [43.333, 0, 143.333, 30], [200, 0, 301, 30]]
    boxes += [[233.668, 0, 334.668, 30], [1300, 0, 1333, 30]]
    boxes += [[400 + 9 * i, 0, 405 + 9 * i, 30] for i in range(rows - len(boxes))]
    return torch.tensor(boxes[:rows])[:, None].repeat(1, 80, 1)


def close_scores(rows):
    """(rows, 80): a row less than the one before, and no two of them the same."""
    return torch.linspace(0.9, 0.5, rows * 80).reshape(rows, 80)


class HandMadeHeads(nn.Module):
    """Instead of ROI heads: a row of boxes for each four of the image, as sure as it is bright."""

    def __init__(self):
        super().__init__()
        self.boxes, self.scores = close_boxes(20).flatten(1), close_scores(20)
        self.scores[0, 79] = 0.99

    def forward(self, images, features, proposals, targets):
        rows, brightness = features["image"].shape[2] // 4, features["image"].max() / 255
        scores = nn.functional.pad(self.scores[:rows], (0, 1)) * brightness
        size = images.image_sizes[0]
        return fast_rcnn_inference([self.boxes[:rows]], [scores], [size], 0.3, 0.5, 2000)[0], {}


class HandMadeFeatures(nn.Module):
    size_divisibility, padding_constraints = 0, {}

    def forward(self, images):
        return {"image": images}


class NoProposals(nn.Module):
    def forward(self, *_):
        return [None], {}


def make_hand_made_detector():
    return GeneralizedRCNN(
        backbone=HandMadeFeatures(),
        proposal_generator=NoProposals(),
        roi_heads=HandMadeHeads(),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
        input_format="RGB",
    ).eval()


@pytest.mark.parametrize("suffix", ["onnx", "ts"])
def test_many_classes_are_kept_apart_to_the_digit(tmp_path, suffix):
    cfg = make_seeded_config(
        *("faster", *THRESHOLD, "TEST.DETECTIONS_PER_IMAGE", "2000"),
        *("INPUT.MIN_SIZE_TEST", "80", "INPUT.MAX_SIZE_TEST", "1333"),
    )
    names = ClassNames(tuple(map(str, range(80))), tuple(range(80)))
    model, path = make_hand_made_detector(), str(tmp_path / f"model.{suffix}")
    image = np.full((80, 1333, 3), 255, np.uint8)
    export_detector(cfg, model, names, path, [image])
    run = run_onnx(path) if suffix == "onnx" else run_torchscript(path)
    for height, brightness, number in [
        (80, 255, 1520),  # of 1,600 candidates all but the second of each class
        (52, 255, 960),  # of 1,040
        (48, 255, None),  # 960 candidates, of which Detectron2 itself rounds the coordinates
        (80, 82, 1),
        (80, 10, 0),
    ]:
        image = np.full((height, 1333, 3), brightness, np.uint8)
        expected, found = run_model(model)(image), run(image)
        assert len(expected) == len(found)
        assert number is None or len(found) == number
        assert (expected.boxes == found.boxes).all() and (expected.classes == found.classes).all()
        assert (np.diff(found.scores) < 0).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("num_example", [4, 40_000])
def test_nms_of_any_number_of_boxes(num_example):
    class Nms(nn.Module):
        def forward(self, boxes, scores, classes):
            with traceable_nms():
                return batched_nms(boxes, scores, classes, 0.5)

    def make(number):
        rng = np.random.default_rng(number)
        corner, size = rng.uniform(-300, 1000, (number, 2)), rng.uniform(1, 300, (number, 2))
        boxes = torch.tensor(np.hstack([corner, corner + size])).float()
        scores = torch.tensor((rng.permutation(number) + 1) / (number + 1)).float()
        return boxes, scores, torch.tensor(rng.integers(0, 80, number))

    torchvisions = box_ops.batched_nms
    few = *make(num_example)[:2], torch.arange(num_example) % 3
    traced = torch.jit.trace(Nms(), few, check_trace=False)
    assert box_ops.batched_nms is torchvisions
    for number in (0, 1, 2, 999, 1000, 1001, 5000):
        boxes = make(number)
        expected = batched_nms(*boxes, 0.5)
        assert (len(expected) < number) == (number > 2)
        assert torch.equal(traced(*boxes), expected)
        assert torch.equal(batched_nms_in_double(*boxes, 0.5), expected)


@pytest.mark.parametrize("rows, differs", [(12, False), (13, True)])
def test_nms_rounds_where_torchvision_does(rows, differs):
    boxes, scores = close_boxes(rows).flatten(0, 1), close_scores(rows).flatten()
    classes = torch.arange(80).repeat(rows)
    expected = batched_nms(boxes, scores, classes, 0.5)
    shifted = box_ops._batched_nms_coordinate_trick(boxes, scores, classes, 0.5)
    assert torch.equal(expected, shifted) != differs
    with traceable_nms():
        assert torch.equal(batched_nms(boxes, scores, classes, 0.5), expected)
    assert torch.equal(batched_nms_in_double(boxes, scores, classes, 0.5), expected)


def test_the_contract_is_in_the_file(exported):
    _, result = exported("mask")
    session = onnxruntime.InferenceSession(result.path)
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


def test_all_keys_are_in_the_documentation(exported):
    text = (ROOT / "docs" / "onnx.md").read_text()
    assert all(f"`{key}`" in text for key in exported("mask")[1].contract)


def test_the_documented_paste_is_detectron2s(exported):
    _, result = exported("mask")
    text = (ROOT / "docs" / "onnx.md").read_text()
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
    # -S: no site-packages, so that PYTHONPATH is all there is beside the standard library.
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


def test_the_example_has_ten_lines():
    lines = (ROOT / "docs" / "run_onnx.py").read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith(("import", "from", '"'))]
    assert len(code) <= 10


# ---- mistakes ----


def make_detections(boxes, scores, classes, masks=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(boxes, np.array(scores, np.float32), np.array(classes), masks)


BOX = [10.0, 10.0, 20.0, 20.0]


@pytest.mark.parametrize(
    "found, message",
    [
        (make_detections([[10.2, 10, 20, 20]], [0.8], [1]), "1 of 1 detections are missing"),
        (make_detections([BOX], [0.802], [1]), "1 of 1 detections are missing"),
        (make_detections([BOX], [0.8], [2]), "class 1, score 0.8000"),
        (make_detections([], [], []), "1 of 1 detections are missing and 0 are new"),
        (make_detections([BOX, BOX], [0.8, 0.8], [1, 1]), "0 of 1 .* 1 are new, new for one"),
    ],
)
def test_compare_names_a_difference(found, message):
    with pytest.raises(UserError, match=message):
        compare(make_detections([BOX], [0.8], [1]), found)


def test_compare_pairs_in_any_order_and_forgives_at_the_threshold():
    other = [50.0, 50.0, 70.0, 80.0]
    expected = make_detections([BOX, other, BOX], [0.8, 0.79999, 0.3004], [1, 1, 2])
    found = make_detections([other, [10.05, 10, 20, 20]], [0.8, 0.7999], [1, 1])
    with pytest.raises(UserError):
        compare(expected, found)
    difference = compare(expected, found, score_threshold=0.3)
    assert difference.detections == 2
    assert difference.box == pytest.approx(0.05, abs=1e-4)
    # A full list: which of equal scores was the last one in is no difference.
    compare(expected, found, score_threshold=0.05, max_detections=3)


def test_compare_looks_at_masks():
    masks = np.full((1, 28, 28), 0.5, np.float32)
    expected = make_detections([BOX], [0.8], [1], masks)
    assert compare(expected, make_detections([BOX], [0.8], [1], masks + 1e-4)).mask > 0
    with pytest.raises(UserError, match="mask"):
        compare(expected, make_detections([BOX], [0.8], [1], masks + 0.01))


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    cfg = make_seeded_config("faster", *THRESHOLD)
    model = make_seeded_model(cfg)
    path = tmp_path / "model.ts"
    path.write_bytes(b"an earlier one")
    from rsb_d2.export import export

    right = export.run_model(model)

    def slightly_wrong(_):
        def run(image):
            found = right(image)
            return Detections(found.boxes + 0.2, found.scores, found.classes)

        return run

    monkeypatch.setattr(export, "run_model", slightly_wrong)
    with pytest.raises(UserError, match="model.ts was not written.*image of 96 x 1"):
        export_detector(cfg, model, NAMES, str(path), pictures(1))
    assert [p.name for p in tmp_path.iterdir()] == ["model.ts"]
    assert path.read_bytes() == b"an earlier one"


def test_nothing_detected_is_nothing_compared(tmp_path):
    cfg = make_seeded_config("faster", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    with pytest.raises(UserError, match="nothing is detected in the 1 images.*--images"):
        export_detector(cfg, make_seeded_model(cfg), NAMES, str(tmp_path / "m.onnx"), pictures(1))
    assert not list(tmp_path.iterdir())


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for path, message in [
        ("model.pth", "must end in .onnx, in .pt2"),
        ("folder.onnx", "is a folder"),
        ("no/such/model.onnx", "there is no folder"),
    ]:
        with pytest.raises(UserError, match=message):
            check_output(str(tmp_path / path))


def test_models_that_cannot_be_exported(tmp_path):
    cfg = make_seeded_config("faster")
    model = make_seeded_model(cfg)
    model.roi_heads.keypoint_on = True
    with pytest.raises(UserError, match="keypoint model cannot be exported"):
        export_detector(cfg, model, NAMES, str(tmp_path / "model.ts"), pictures(1))
    with pytest.raises(UserError, match="Linear cannot be exported"):
        export_detector(cfg, torch.nn.Linear(1, 1), NAMES, str(tmp_path / "m.ts"), pictures(1))


def test_images_to_compare_on(tmp_path):
    cfg = make_seeded_config("faster")
    assert len(comparison_images(cfg, [])) == 4  # drawn, as there is no data
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    (image,) = comparison_images(cfg, [str(tmp_path)])
    assert (image == pictures(1)[0]).all()
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="--images: .*b.png: it is no image"):
        comparison_images(cfg, [str(tmp_path)])


def test_the_program(tmp_path):
    make_seeded_run(tmp_path / "run", "faster")
    output = tmp_path / "model.onnx"
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools" / "export.py"), "--threshold", "0.3"),
            *("--run", str(tmp_path / "run"), "--output", str(output)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "compared with the model on images of" in result.stdout
    assert '["circle", "square", "triangle", "star", "cross", "crescent"]' in result.stdout
    cfg = load_predict_config(run=str(tmp_path / "run"), threshold=0.3)
    model, classes = load_detector(cfg)
    assert classes == NAMES
    image = small(cfg, pictures(1))[0]
    compare(run_model(model)(image), run_onnx(str(output))(image), 0.3, 100)
