"""Int8 for OpenVINO: what is quantized, what stays in float, and what is refused."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from rsb_d2 import UserError
from rsb_d2.addons.export import export_detector, run_openvino
from rsb_d2.addons.export.export import fit, fitted_size
from rsb_d2.addons.export.files import run_model
from rsb_d2.addons.export.quantization import Int8, calibration_images, layer_name
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures, small
from tests.helpers.runs.programs import load_tool
from tests.helpers.seeded_run import CLASSES, IDS, make_seeded_config, make_seeded_model

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

NUM_IMAGES = 32
SLOW_KINDS = [pytest.param(k, marks=pytest.mark.slow) for k in ("mask", "cascade", "retinanet")]


def make_detector(folder, kind):
    """A seeded detector, and data whose objects are its own detections: its AP is 100."""
    images = folder / "images"
    images.mkdir()
    drawn = pictures(NUM_IMAGES, 160)
    for i, picture in enumerate(drawn):
        Image.fromarray(picture).save(images / f"{i}.png")
    data = f"[['own_{folder.name}', '{folder / 'val.json'}', '{images}']]"
    test = ["DATASETS.COCO_JSON", data, "DATASETS.TEST", f"('own_{folder.name}',)"]
    cfg = make_seeded_config(kind, *THRESHOLD, *test, "DATALOADER.NUM_WORKERS", "0")
    model = make_seeded_model(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and not parameter.any():  # of norms, whose outputs have no range
            parameter.data.fill_(0.2)
        if "fpn_output" in name and name.endswith("bias"):  # OpenVINO needs one other than 0
            parameter.data.fill_(0.01)
    objects, val = [], drawn[:4]
    for i, image in enumerate(small(cfg, val)):
        found, factor = run_model(model)(image), val[i].shape[1] / image.shape[1]
        for box, label in zip(found.boxes.astype(float) * factor, found.classes):
            x0, y0, x1, y1 = box.tolist()
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            box["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            objects.append({**box, "category_id": IDS[label], "image_id": i, "iscrowd": 0})
    sizes = [
        {"id": i, "file_name": f"{i}.png", "height": image.shape[0], "width": image.shape[1]}
        for i, image in enumerate(val)
    ]
    names = [{"id": i, "name": name} for i, name in zip(IDS, CLASSES)]
    objects = [{**o, "id": i} for i, o in enumerate(objects, 1)]
    content = {"images": sizes, "annotations": objects, "categories": names}
    (folder / "val.json").write_text(json.dumps(content))
    return cfg, model, calibration_images(str(images))


def read_ir(path):
    return openvino.Core().read_model(path)


def consumers(op):
    return [value.get_node() for output in op.outputs() for value in output.get_target_inputs()]


def test_no_operation_of_an_onnx_file_is_in_two_graphs(exported):
    """NNCF refuses a graph that shares an operation with the body of a loop."""
    _, result = exported("faster")
    operations = read_ir(result.path).get_ops()
    names = {op.get_friendly_name() for op in operations}
    assert names.issuperset(c.get_friendly_name() for op in operations for c in consumers(op))


@pytest.mark.parametrize("kind", ["faster", *SLOW_KINDS])
def test_all_layers_and_nothing_else_are_quantized(tmp_path, kind):
    pytest.importorskip("nncf")
    cfg, model, images = make_detector(tmp_path, kind)
    path = str(tmp_path / "model.xml")
    result = export_detector(cfg, model, NAMES, path, pictures(1), int8=Int8(images, 100))
    quantized = result.quantized
    assert quantized.before["bbox"] > 95
    assert quantized.after["bbox"] < quantized.before["bbox"]
    assert quantized.before.keys() == quantized.after.keys()
    assert ("segm" in quantized.after) == (kind in ("mask", "cascade"))
    # Each layer of the model; a layer that is called for each level of the pyramid has numbers.
    kinds = (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    assert set(map(last_part, quantized.layers)) == set(map(last_part, layers))
    assert len(quantized.layers) >= len(layers)
    # By the names of the modules: what gets quantized values is in the network.
    parts = ("backbone", "rpn_head", "head", "box_head", "box_predictor")
    parts += ("mask_fcn", "predictor", "ConvolutionBackpropData")  # of the mask head
    operations = read_ir(path).get_ops()
    fakes = [op for op in operations if op.get_type_name() == "FakeQuantize"]
    assert len(fakes) > len(quantized.layers) / 2
    users = [c for fake in fakes for c in consumers(fake) if c.get_type_name() != "ShapeOf"]
    found = {layer_name(user.get_friendly_name()) for user in users}
    assert not [name for name in found if not name.startswith(parts)]


def last_part(name):
    name = re.sub(r"^ConvolutionBackpropData_\d+$", "deconv", name)  # which OpenVINO names itself
    return re.sub(r"_\d+$", "", name.split(".")[-1])


@pytest.mark.slow
def test_layers_that_stay_in_float(tmp_path):
    pytest.importorskip("nncf")
    cfg, model, images = make_detector(tmp_path, "faster")
    path = str(tmp_path / "model.xml")
    int8 = Int8(images, 100, ("backbone", "rpn_head"))
    quantized = export_detector(cfg, model, NAMES, path, pictures(1), int8=int8).quantized
    assert {name.split(".")[0] for name in quantized.layers} == {"box_head", "box_predictor"}
    operations = read_ir(path).get_ops()
    fakes = [op for op in operations if op.get_type_name() == "FakeQuantize"]
    assert len(fakes) == 3  # the inputs of four layers, of which two are the same
    int8 = Int8(images, 100, ("backbone", "no_head"))
    with pytest.raises(UserError, match="--keep-float: no layer's name begins with no_head"):
        export_detector(cfg, model, NAMES, path, pictures(1), int8=int8)
    int8 = Int8(images, 100, ("backbone", "rpn_head", "box"))
    with pytest.raises(UserError, match="--keep-float leaves no layer to quantize"):
        export_detector(cfg, model, NAMES, path, pictures(1), int8=int8)


@pytest.mark.slow
def test_a_fixed_size(tmp_path):
    """The AP is measured on images in a canvas, whose boxes go back to the image."""
    pytest.importorskip("nncf")
    cfg, model, images = make_detector(tmp_path, "faster")
    path, size = str(tmp_path / "model.xml"), (96, 128)
    export = export_detector(cfg, model, NAMES, path, pictures(1), size, Int8(images, 100))
    assert export.quantized.before["bbox"] > 10  # the padding changes what such a model finds
    assert run_openvino(path)(np.zeros((*size, 3), np.uint8)).boxes.shape[1] == 4


def test_the_size_of_an_image_in_its_canvas():
    for image, size in [((50, 100), (96, 128)), ((100, 50), (96, 128)), ((7, 3), (33, 64))]:
        height, width = fitted_size(image, size)
        canvas = fit(np.full((*image, 3), 255, np.uint8), size, (0, 0, 0))
        rows, columns = canvas.any(axis=(1, 2)).sum(), canvas.any(axis=(0, 2)).sum()
        assert canvas.shape[:2] == size and (height, width) == (rows, columns)


# ---- refused ----


@pytest.mark.slow
def test_a_loss_of_ap_is_refused_and_names_layers(tmp_path):
    pytest.importorskip("nncf")
    cfg, model, images = make_detector(tmp_path, "faster")
    for name in ("model.xml", "model.bin"):
        (tmp_path / name).write_bytes(b"an earlier one")
    path = str(tmp_path / "model.xml")
    with pytest.raises(UserError) as e:
        export_detector(cfg, model, NAMES, path, pictures(1), int8=Int8(images, 0.0))
    found = re.fullmatch(
        r"the bbox AP on own_\S+ falls from (\S+) to (\S+) in int8, by more than --max-ap-drop "
        r"0.0; these layers cost most, kept with --keep-float: (.*)",
        str(e.value),
    )
    assert float(found[1]) > float(found[2])
    names = re.findall(r"(\S+) \([+-]\d+\.\d\d\)", found[3])
    modules = {last_part(name) for name, _ in model.named_modules()}
    assert len(names) == 3 and modules.issuperset(map(last_part, names))
    assert {p.read_bytes() for p in tmp_path.glob("model.*")} == {b"an earlier one"}


FORMAT = ("--output", "m.xml", "--format", "openvino")
RUN = ("--config-file", "frcnn_rsb_1x.yaml", "--weights", "none.pth")
NO_TEST = ("--opts", "DATASETS.TEST", "()")


@pytest.mark.parametrize(
    "options, says",
    [
        ((*FORMAT, "--int8"), "--int8 needs images: --calibrate FOLDER"),
        ((*FORMAT, "--calibrate", "a"), "--calibrate and --keep-float have an effect only with"),
        (("--output", "m.onnx", "--int8", "--calibrate", "a"), "--int8 needs --format openvino"),
        (
            (*FORMAT, "--int8", "--calibrate", "a", "--max-ap-drop", "-1"),
            "--max-ap-drop is -1.0; write points of AP",
        ),
        ((*FORMAT, "--int8", "--calibrate", "a", *NO_TEST), "but DATASETS.TEST is empty"),
    ],
)
def test_options_that_do_not_fit(options, says, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    nncf = SimpleNamespace(set_log_level=lambda level: None)
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    monkeypatch.setattr(sys, "argv", ["export.py", *RUN, *options])
    assert load_tool("export").main() == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nncf_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.setattr(sys, "argv", ["export.py", *FORMAT, "--int8", "--calibrate", "a"])
    assert load_tool("export").main() == 2
    assert "--int8 needs a package more: pip install nncf" in capsys.readouterr().err


def test_images_to_calibrate_on(tmp_path, caplog):
    folder, picture = tmp_path / "images", Image.fromarray(pictures(1, 64)[0])
    with pytest.raises(UserError, match="there is no image or folder"):
        calibration_images(str(folder))
    folder.mkdir()
    for i in range(NUM_IMAGES):
        picture.save(folder / f"{i}.png")
    assert len(calibration_images(str(folder))) == NUM_IMAGES
    (folder / "7.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="^--calibrate: .* has 31 images that can be read; .* 32"):
        calibration_images(str(folder))
    assert "7.png: it is not an image" in caplog.text
    for i in range(400):
        (folder / f"link{i}.png").symlink_to(folder / "0.png")
    assert len(calibration_images(str(folder))) in (299, 300)


def test_images_of_a_config(tmp_path):
    images, records = tmp_path / "images", []
    images.mkdir()
    for i, picture in enumerate(pictures(NUM_IMAGES, 64)):
        Image.fromarray(picture).save(images / f"{i}.png")
        records.append({"id": i, "file_name": f"{i}.png", "height": 64, "width": 64})
    box = {"bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
    boxes = [{**box, "id": i + 1, "image_id": i} for i in range(NUM_IMAGES)]
    content = {"images": records, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    data = f"[['calibrated', '{tmp_path / 'train.json'}', '{images}']]"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"MODEL: {{ROI_HEADS: {{NUM_CLASSES: 1}}}}\n"
        f"DATASETS: {{COCO_JSON: {data}, TRAIN: ['calibrated'], TEST: []}}\n"
    )
    assert sorted(calibration_images(str(config))) == sorted(map(str, images.iterdir()))
    config.write_text("DATASETS: {TRAIN: [], TEST: []}\n")
    with pytest.raises(UserError, match="--calibrate: DATASETS.TRAIN of .*config.yaml is empty"):
        calibration_images(str(config))
    with pytest.raises(UserError, match="--calibrate: there is no config .*none.yaml"):
        calibration_images("none.yaml")
