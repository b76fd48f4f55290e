"""Exported files compute what the model does, and none is written that does not."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rsb_d2 import UserError
from rsb_d2.addons.export import (
    Detections,
    compare,
    export_detector,
    images,
    run_onnx,
    run_torch_export,
)
from rsb_d2.addons.export.export import check_output
from rsb_d2.addons.export.images import comparison_images
from rsb_d2.addons.export.running import run_model
from rsb_d2.predictor import load_detector, load_predict_config
from tests.helpers.models.exporting import (
    NAMES,
    THRESHOLD,
    pictures,
    small,
)
from tests.helpers.runs.programs import call_tool
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model, make_seeded_run

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.mark.parametrize(
    "kind",
    ["faster", *(pytest.param(k, marks=pytest.mark.slow) for k in ("mask", "retinanet"))],
)
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


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) for k in ("faster", "mask", "cascade", "retinanet")],
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


def test_a_model_is_exported_from_where_it_is(tmp_path, device):
    cfg = make_seeded_config("mask", *THRESHOLD, "MODEL.DEVICE", device)
    model = make_seeded_model(cfg)
    result = export_detector(cfg, model, NAMES, str(tmp_path / "model.onnx"), pictures(1))
    # The model stays on its device, where it is compared with the file.
    image = small(cfg, pictures(2))[1]
    difference = compare(run_model(model)(image), run_onnx(result.path)(image), 0.3, 100)
    assert difference.detections >= 3
    assert difference.box < 0.1 and difference.score < 1e-3 and difference.mask < 1e-2
    assert model.device.type == torch.device(device).type


# ---- mistakes ----


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    cfg = make_seeded_config("faster", *THRESHOLD)
    model = make_seeded_model(cfg)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier one")
    from rsb_d2.addons.export import export

    right = export.run_model(model)

    def slightly_wrong(_):
        def run(image):
            found = right(image)
            return Detections(found.boxes + 0.2, found.scores, found.classes)

        return run

    monkeypatch.setattr(export, "run_model", slightly_wrong)
    with pytest.raises(UserError, match="model.onnx was not written.*image of 96 x 1"):
        export_detector(cfg, model, NAMES, str(path), pictures(1))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
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
        ("model.ts", "TorchScript .* no longer written; .* .pt2 for torch.export or in .onnx"),
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
        export_detector(cfg, model, NAMES, str(tmp_path / "model.onnx"), pictures(1))
    with pytest.raises(UserError, match="Linear cannot be exported"):
        export_detector(cfg, torch.nn.Linear(1, 1), NAMES, str(tmp_path / "m.onnx"), pictures(1))


def test_images_to_compare_on(tmp_path):
    cfg = make_seeded_config("faster")
    assert len(comparison_images(cfg, [])) == 4  # drawn, as there is no data
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    (image,) = comparison_images(cfg, [str(tmp_path)])
    assert (image == pictures(1)[0]).all()
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="--images: .*b.png: it is no image"):
        comparison_images(cfg, [str(tmp_path)])


def test_a_bad_image_of_the_test_data_is_left_out(tmp_path, monkeypatch, caplog):
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    paths = [str(tmp_path / "b.png"), str(tmp_path / "a.png")]
    monkeypatch.setattr(images, "_test_images", lambda cfg: paths)
    (image,) = comparison_images(make_seeded_config("faster"), [])
    assert (image == pictures(1)[0]).all()
    assert "b.png: it is no image" in caplog.text and "--images" not in caplog.text


@pytest.mark.slow
def test_the_program(tmp_path):
    make_seeded_run(tmp_path / "run", "faster")
    output = tmp_path / "model.onnx"
    words = ["--threshold", "0.3", "--run", tmp_path / "run", "--output", output]
    status, out, err = call_tool("export", tmp_path, *words)
    assert status == 0, err
    assert "compared with the model on images of" in out
    assert '["circle", "square", "triangle", "star", "cross", "crescent"]' in out
    cfg = load_predict_config(run=str(tmp_path / "run"), threshold=0.3)
    model, classes = load_detector(cfg)
    assert classes == NAMES
    image = small(cfg, pictures(1))[0]
    compare(run_model(model)(image), run_onnx(str(output))(image), 0.3, 100)
