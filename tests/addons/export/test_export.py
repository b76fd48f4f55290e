"""Exported files compute what the model does, and a file that does not is not written."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rsb_d2 import UserError
from rsb_d2.addons.export import (
    Detections,
    compare,
    export,
    export_detector,
    run_onnx,
    run_openvino,
    run_torch_export,
)
from rsb_d2.addons.export.export import check_output, comparison_images
from rsb_d2.addons.export.files import Format, run_model
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures, small
from tests.helpers.models.static import C4
from tests.helpers.runs.programs import load_tool
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

SLOW_KINDS = [pytest.param(k, marks=pytest.mark.slow) for k in ("cascade", "retinanet")]


def random_image(seed, size):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


# ---- ONNX ----


@pytest.mark.parametrize("kind", ["faster", "mask", *SLOW_KINDS])
def test_onnx_file_equals_the_model(exported, kind):
    """In onnxruntime and in OpenVINO; sides that are padded, and multiples of 32."""
    model, result = exported(kind)
    assert len(set(result.sizes)) >= 3
    assert result.difference.detections >= 5
    assert result.difference.box < 0.1 and result.difference.score < 1e-3
    torch_model, runtimes = run_model(model), [run_onnx(result.path)]
    try:
        runtimes.append(run_openvino(result.path))
    except UserError:  # not installed
        pass
    for run in runtimes:
        total = 0
        for seed, size in enumerate([(32, 32), (33, 250), (301, 77), (160, 224)]):
            image = random_image(seed, size)
            expected = torch_model(image)
            difference = compare(expected, run(image), 0.3, 100)
            assert difference.box < 1e-2 and difference.score < 1e-4 and difference.mask < 1e-4
            assert (expected.masks is not None) == (kind in ("mask", "cascade"))
            total += difference.detections
        assert total >= 20  # a comparison of nothing proves nothing


@pytest.mark.parametrize("kind", ["faster", pytest.param("retinanet", marks=pytest.mark.slow)])
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


def test_a_model_on_a_gpu_is_exported_from_there(tmp_path, device):
    if device == "cpu":
        pytest.skip("test_onnx_file_equals_the_model has it")
    cfg = make_seeded_config("mask", *THRESHOLD, "MODEL.DEVICE", device)
    model = make_seeded_model(cfg)
    result = export_detector(cfg, model, NAMES, str(tmp_path / "model.onnx"), pictures(1))
    # The model stays on its device, where it is compared with the file.
    image = small(cfg, pictures(2))[1]
    difference = compare(run_model(model)(image), run_onnx(result.path)(image), 0.3, 100)
    assert difference.detections >= 3
    assert difference.box < 0.1 and difference.score < 1e-3 and difference.mask < 1e-2
    assert model.device.type == torch.device(device).type


# ---- OpenVINO ----


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster", "mask", "cascade", "retinanet"])
def test_openvino_file_equals_the_model(exported, kind):
    pytest.importorskip("openvino")
    model, result = exported(kind, "xml")
    assert len(set(result.sizes)) >= 3
    image = random_image(6, (33, 250))
    found = run_openvino(result.path)(image)
    assert compare(run_model(model)(image), found, 0.3, 100).detections >= 5


def test_bfloat16_in_openvino(exported):
    openvino = pytest.importorskip("openvino")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("the processor has no bfloat16")
    _, result = exported("faster", "onnx")
    image = random_image(6, (90, 150))
    options = [{"INFERENCE_PRECISION_HINT": precision} for precision in ("f32", "bf16")]
    scores = [openvino.compile_model(result.path, "CPU", each)(image)[1] for each in options]
    assert len(scores[0]) >= 5
    np.testing.assert_allclose(scores[1][:5], scores[0][:5], rtol=0.1)


# ---- torch.export ----


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) for k in ("faster", "mask", "cascade", "retinanet")],
)
def test_torch_export_file_equals_the_model(exported, kind):
    model, result = exported(kind, "pt2")
    assert result.difference.detections >= 5 and len(set(result.sizes)) >= 3
    min_side = 129 if kind == "retinanet" else 65
    assert result.contract["input_min_side"] == str(min_side)
    program, torch_model = run_torch_export(result.path), run_model(model)
    total = 0
    for seed, size in enumerate([(min_side, min_side), (min_side + 1, 257), (301, 160)]):
        image = random_image(seed, size)
        expected = torch_model(image)
        difference = compare(expected, program(image), 0.3, 100)
        # With random weights, each stage of a cascade enlarges the rounding of the one before.
        limit = 1e-4 if kind == "cascade" else 1e-5
        assert difference.box < 1e-3 and difference.score < limit and difference.mask < 1e-4
        assert (expected.masks is not None) == (kind in ("mask", "cascade"))
        total += difference.detections
    assert total >= 20
    about = {"metadata.json": ""}
    torch.export.load(result.path, extra_files=about)
    assert json.loads(about["metadata.json"]) == result.contract


def test_torch_export_refuses_small_images(tmp_path):
    cfg = make_seeded_config("retinanet", *THRESHOLD)  # whose images get 96 pixels, of 129
    model = make_seeded_model(cfg)
    with pytest.raises(UserError, match="resized to 96 x 96, .* of 129 pixels or more"):
        export_detector(cfg, model, NAMES, str(tmp_path / "m.pt2"), [np.zeros((9, 9, 3), np.uint8)])

    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_c4_detectors(tmp_path, ending):
    """The export compares the file with the model, on images of several sizes."""
    cfg = make_seeded_config("mask", *THRESHOLD, *C4)
    path = str(tmp_path / f"c4.{ending}")
    result = export_detector(cfg, make_seeded_model(cfg), NAMES, path, pictures())
    assert len(set(result.sizes)) >= 3 and result.difference.detections >= 5
    assert result.difference.box < 0.1 and result.difference.score < 1e-3


# ---- mistakes ----


def test_nothing_detected_is_nothing_compared(tmp_path):
    cfg = make_seeded_config("faster", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    with pytest.raises(UserError, match="nothing is detected in the 1 images.*--images"):
        export_detector(cfg, make_seeded_model(cfg), NAMES, str(tmp_path / "m.onnx"), pictures(1))
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_refused(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for path, message in [
        ("model.pth", "must end in .onnx, in .pt2"),
        ("model.ts", "TorchScript .* no longer written; .* .pt2 for torch.export or in .onnx"),
        ("folder.onnx", "is a folder"),
        ("no/such/model.onnx", "there is no folder"),
    ]:
        with pytest.raises(UserError, match=message):
            check_output(str(tmp_path / path))


def test_models_that_are_refused(tmp_path):
    cfg = make_seeded_config("faster")
    model = make_seeded_model(cfg)
    model.roi_heads.keypoint_on, model.roi_heads.keypoint_head = True, torch.nn.Identity()
    with pytest.raises(UserError, match="has no form with fixed shapes"):
        export_detector(cfg, model, NAMES, str(tmp_path / "model.onnx"), pictures(1))
    with pytest.raises(UserError, match="Linear has no form with fixed shapes"):
        export_detector(cfg, torch.nn.Linear(1, 1), NAMES, str(tmp_path / "m.onnx"), pictures(1))


def test_images_to_compare_on(tmp_path):
    cfg = make_seeded_config("faster")
    assert len(comparison_images(cfg, [])) == 4  # drawn, as there is no data
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    (image,) = comparison_images(cfg, [str(tmp_path)])
    assert (image == pictures(1)[0]).all()
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="--images: .*b.png: it is not an image"):
        comparison_images(cfg, [str(tmp_path)])


def test_files_that_differ_are_not_written(tmp_path, monkeypatch):
    cfg = make_seeded_config("faster", *THRESHOLD)
    model = make_seeded_model(cfg)
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(b"an earlier one")

    def load(xml, weights):
        contents = [open(path, "rb").read() for path in (xml, weights)]
        assert contents == [b"a graph", b"its weights"]

        def run(image):
            found = run_model(model)(image)
            found.boxes = found.boxes + 0.2
            return found

        return run

    kind = Format((".xml", ".bin"), lambda *_: (b"a graph", b"its weights"), load)
    monkeypatch.setattr(export, "format_of", lambda path: kind)
    path = str(tmp_path / "model.xml")
    with pytest.raises(UserError, match="model.xml was not written.*image of 96 x 64"):
        export_detector(cfg, model, NAMES, path, pictures(1), (64, 96))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    assert {p.read_bytes() for p in tmp_path.iterdir()} == {b"an earlier one"}


@pytest.mark.parametrize(
    "options, says",
    [
        (("--output", "m.onnx", "--format", "openvino"), "--output: m.onnx must end in .xml with"),
        (("--output", "m.onnx", "--image-size", "640"), "--image-size is '640'; write height x"),
        (("--output", "m.onnx", "--batch-size", "2"), "--batch-size needs --image-size and an"),
        (("--output", "m.onnx", "--batch-size", "0"), "--batch-size is 0; it must be 1 or more"),
        (("--output", "m.onnx", "--image-size", "0x90"), "0x90; a side must have 32 pixels"),
        (("--output", "m.onnx", "--format", "torchscript"), "--format torchscript: TorchScript"),
        (
            ("--output", "m", "--format", "detectron2", "--image-size", "64x90"),
            "--image-size: Detectron2 resizes images",
        ),
    ],
)
def test_options_that_do_not_fit(options, says, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export.py", "--run", "none", *options])
    assert load_tool("export").main() == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# ---- the comparison ----


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
