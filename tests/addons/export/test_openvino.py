"""Exported graphs in OpenVINO, and its own format."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rsb_d2 import UserError
from rsb_d2.addons.export import (
    compare,
    export_detector,
    run_onnx,
    run_openvino,
)
from rsb_d2.addons.export.export import check_output
from rsb_d2.addons.export.formats import Format
from rsb_d2.addons.export.images import fit, read_size
from rsb_d2.addons.export.running import run_model
from rsb_d2.addons.workbench.sample.draw import draw_picture
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.paths import ROOT
from tests.helpers.runs.programs import load_tool
from tests.helpers.seeded_run import CLASSES, make_seeded_config, make_seeded_model

SIZE = (100, 170)


@pytest.fixture
def openvino():
    return pytest.importorskip("openvino")


def about(model):
    return {key: value.value for key, value in model.get_rt_info()["framework"].items()}


@pytest.mark.parametrize(
    "kind",
    [
        "faster",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("mask", "cascade", "retinanet")),
    ],
)
def test_the_onnx_file_runs_there_with_free_height_and_width(exported, openvino, kind):
    """Padded sides, and those that are a multiple of 32 as they are."""
    model, result = exported(kind)
    read = openvino.Core().read_model(result.path)
    assert [side.is_dynamic for side in read.input().partial_shape] == [True, True, False]
    there, torch_model = run_openvino(result.path), run_model(model)
    total = 0
    for seed, size in enumerate([(32, 32), (33, 250), (301, 77), (160, 224)]):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        expected = torch_model(image)
        difference = compare(expected, there(image), 0.3, 100)
        assert difference.box < 1e-2 and difference.score < 1e-4 and difference.mask < 1e-4
        total += difference.detections
    assert total >= 20


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """A model, and its files of one size for OpenVINO."""
    pytest.importorskip("openvino")
    cfg = make_seeded_config("faster", *THRESHOLD)
    model = make_seeded_model(cfg)
    folder = tmp_path_factory.mktemp("openvino")
    return model, export_detector(cfg, model, NAMES, str(folder / "m.xml"), pictures(), SIZE)


@pytest.mark.slow
def test_its_format_with_a_fixed_size(fixed, openvino):
    model, result = fixed
    folder = os.path.dirname(result.path)
    assert sorted(os.listdir(folder)) == ["m.bin", "m.xml"]
    assert [os.path.basename(file) for file in result.files] == ["m.xml", "m.bin"]
    assert set(result.sizes) == {SIZE} and result.difference.detections >= 10
    read = openvino.Core().read_model(result.path)
    assert list(read.input().shape) == [*SIZE, 3]
    assert about(read) == result.contract
    assert [o.any_name for o in read.outputs] == ["boxes", "scores", "classes"]
    weights = sum(p.numel() * 4 for p in model.parameters())  # in float32
    assert os.path.getsize(result.files[1]) > 0.6 * weights  # residual branches of 0 are one
    image = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    difference = compare(run_model(model)(image), run_openvino(result.path)(image), 0.3, 100)
    assert difference.detections >= 5 and difference.box < 1e-2 and difference.score < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster", "mask", "cascade", "retinanet"])
def test_its_format_with_free_height_and_width(exported, kind):
    pytest.importorskip("openvino")
    model, result = exported(kind, "xml")
    assert len(set(result.sizes)) >= 3
    image = np.random.default_rng(6).integers(0, 256, (33, 250, 3), dtype=np.uint8)
    found = run_openvino(result.path)(image)
    assert compare(run_model(model)(image), found, 0.3, 100).detections >= 5


@pytest.mark.slow  # the same by OpenVINO's format above
def test_onnx_with_a_fixed_size(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    cfg = make_seeded_config("faster", *THRESHOLD)
    model = make_seeded_model(cfg)
    path = str(tmp_path / "model.onnx")
    result = export_detector(cfg, model, NAMES, path, pictures(1), SIZE)
    session = runtime.InferenceSession(path)
    assert session.get_inputs()[0].shape == [*SIZE, 3]
    contract = session.get_modelmeta().custom_metadata_map
    assert contract == result.contract
    assert (contract["input_height"], contract["input_width"]) == ("100", "170")
    assert json.loads(contract["pad_color"]) == [124, 116, 104]  # the mean of ImageNet
    assert not {"resize_short_side", "input_min_side"} & set(contract)
    image = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    assert compare(run_model(model)(image), run_onnx(path)(image), 0.3, 100).detections >= 5


def test_an_image_is_fitted_into_a_size():
    image = np.full((40, 20, 3), 200, np.uint8)
    fitted = fit(image, (60, 90), (1, 2, 3))
    assert fitted.shape == (60, 90, 3) and fitted.dtype == np.uint8
    assert (fitted[:, :30] == 200).all() and (fitted[:, 30:] == [1, 2, 3]).all()


def test_the_example_of_the_documentation(exported, fixed, tmp_path):
    """ONNX of any size and its own format of one; it names neither torch nor this project."""
    picture = draw_picture(np.random.default_rng(1), 300)[0][:225, :200]
    Image.fromarray(picture).save(tmp_path / "image.png")
    model, free = exported("faster")
    _, one_size = fixed
    resized = np.array(Image.fromarray(picture).resize((96, 108), Image.Resampling.BILINEAR))
    for result, image in ((free, resized), (one_size, fit(picture, SIZE, (124, 116, 104)))):
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
    text = (ROOT / "docs" / "run_openvino.py").read_text()
    assert "torch" not in text and "rsb_d2" not in text


# ---- mistakes ----


def test_files_that_differ_are_not_written(tmp_path, monkeypatch):
    cfg = make_seeded_config("faster", *THRESHOLD)
    model = make_seeded_model(cfg)
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(b"an earlier one")
    from rsb_d2.addons.export import export

    def load(xml, weights):
        contents = [open(path, "rb").read() for path in (xml, weights)]
        assert contents == [b"a graph", b"its weights"]

        def run(image):
            found = run_model(model)(image)
            found.boxes = found.boxes + 0.2
            return found

        return run

    kind = Format((".xml", ".bin"), lambda m: m, lambda *_: (b"a graph", b"its weights"), load)
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
        (("--output", "m.onnx", "--image-size", "0x90"), "0x90; a side must have 32 pixels"),
        (("--output", "m.onnx", "--format", "torchscript"), "--format torchscript: TorchScript"),
        (("--output", "m.pt2", "--image-size", "64x90"), "--image-size: m.pt2 takes images of any"),
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


def test_openvino_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="two packages more: pip install openvino onnx"):
        check_output("model.xml")


def test_sizes():
    assert read_size("640x853") == (640, 853) and read_size("") is None
    for wrong in ("640 x 853", "-640x853", "640x853x3", "1e3x90", "x90"):
        with pytest.raises(UserError, match="write height x width, as 640x853"):
            read_size(wrong)
