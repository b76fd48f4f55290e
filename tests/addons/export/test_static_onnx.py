"""The graph of fixed shapes in ONNX: batches, and suppression to the digit."""

import io

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from torch import nn

from rsb_d2 import UserError
from rsb_d2.addons.accelerate.static import Chosen, suppress_classes
from rsb_d2.addons.export import export_detector
from tests.helpers.models.exporting import NAMES, THRESHOLD, pictures
from tests.helpers.models.static import check_equal, detect, make_batch
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

NUM_CLASSES, LIMIT = 80, 300


def close_boxes(rows):
    """(rows * 80, 4): in each class two pairs at an overlap of nearly 0.5, and boxes apart.

    A box and another of its width w, d to the right of it, overlap by (w - d) / (w + d): by 0.5
    if d is w / 3. Rounded to 1/128, as by the shift of a high class, 33.333 is more than 100 / 3
    and 33.668 is less than 101 / 3.
    """
    boxes = [[10, 0, 110, 30], [43.333, 0, 143.333, 30], [200, 0, 301, 30]]
    boxes += [[233.668, 0, 334.668, 30], [1300, 0, 1333, 30]]
    boxes += [[400 + 9 * i, 0, 405 + 9 * i, 30] for i in range(rows - len(boxes))]
    return torch.tensor(boxes)[:, None].repeat(1, NUM_CLASSES, 1).flatten(0, 1)


def random_boxes(number):
    rng = np.random.default_rng(number)
    corner, size = rng.uniform(-300, 1000, (number, 2)), rng.uniform(1, 300, (number, 2))
    return torch.tensor(np.hstack([corner, corner + size])).float()


class Suppression(nn.Module):
    def forward(self, boxes, scores, classes, total):
        found = Chosen(boxes, scores, classes)
        found, is_exact = suppress_classes(found, NUM_CLASSES, total, 0.5, LIMIT)
        return *found, is_exact


def to_onnx(module, inputs):
    """Functions from the inputs to a list of outputs: of onnxruntime and of OpenVINO."""
    buffer = io.BytesIO()
    names = [f"input{i}" for i in range(len(inputs))]
    torch.onnx.export(
        module.eval(), inputs, buffer, dynamo=False, opset_version=17, input_names=names
    )
    session = onnxruntime.InferenceSession(buffer.getvalue())
    runtimes = [lambda *inputs: session.run(None, dict(zip(names, inputs)))]
    try:
        import openvino
    except ImportError:
        return runtimes
    model = openvino.Core().read_model(buffer.getvalue())
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [*runtimes, lambda *inputs: list(compiled(inputs).values())]


@pytest.fixture(scope="module")
def runtimes():
    """For batches of two."""
    example = torch.zeros(2, 1000, 4), torch.rand(2, 1000), torch.zeros(2, 1000).long()
    return to_onnx(Suppression(), (*example, torch.tensor([1, 1])))


SLOW = [pytest.param(k, marks=pytest.mark.slow) for k in ("mask", "cascade", "retinanet")]


@pytest.mark.parametrize("kind", ["faster", *SLOW])
def test_a_batch_of_images_of_different_sizes(kind, tmp_path):
    cfg, path = make_seeded_config(kind, *THRESHOLD), str(tmp_path / "batch.onnx")
    model = make_seeded_model(cfg)
    result = export_detector(cfg, model, NAMES, path, pictures(1), (100, 160), batch_size=4)
    assert result.contract["input_batch"] == "4" and result.difference.detections >= 5
    images, sizes = make_batch([(100, 160), (33, 160), (100, 61), (70, 70)], (100, 160), seed=4)
    inputs = {"images": images.numpy(), "sizes": sizes.numpy()}
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    runs = [lambda: session.run(None, inputs)]
    try:
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"}
        runs.append(lambda: openvino.compile_model(path, "CPU", options)(inputs).values())
    except ImportError:
        pass
    expected = detect(model, images, sizes)
    for run in runs:
        outputs = dict(zip(names, map(torch.tensor, run())))
        assert ("masks" in outputs) == (kind in ("mask", "cascade")) and outputs["is_exact"].all()
        assert sum(check_equal(expected, outputs, score=1e-4)) >= 10


def test_a_batch_for_openvino(tmp_path):
    """The export compares the file with the model."""
    pytest.importorskip("openvino")
    cfg, path = make_seeded_config("faster", *THRESHOLD), str(tmp_path / "batch.xml")
    model = make_seeded_model(cfg)
    result = export_detector(cfg, model, NAMES, path, pictures(1), (100, 160), batch_size=2)
    assert result.difference.detections >= 5
    with pytest.raises(UserError, match="--batch-size needs --image-size and an .onnx or .xml"):
        export_detector(cfg, model, NAMES, str(tmp_path / "b.pt2"), [], (100, 160), batch_size=2)


@pytest.mark.parametrize("boxes", [close_boxes(20), random_boxes(1600)], ids=["close", "random"])
def test_exported_suppression_equals_detectron2s(runtimes, boxes):
    """Of 1,000 boxes or fewer, torchvision itself rounds the coordinates."""
    classes = torch.arange(len(boxes)) % NUM_CLASSES
    scores = torch.linspace(0.9, 0.5, len(boxes))
    for numbers in [(1600, 1040), (1000, 960), (80, 1), (0, 1600)]:
        inputs = [[], [], []]
        for number in numbers:
            values = boxes[:number], scores[:number], classes[:number]
            for parts, value, fill in zip(inputs, values, (0.0, -torch.inf, 0)):
                filler = value.new_full((max(1000 - number, 0), *value.shape[1:]), fill)
                parts.append(torch.cat([value, filler])[:1000])
        inputs = [torch.stack(parts).numpy() for parts in inputs]
        for run in runtimes:
            found = [np.array(x) for x in run(*inputs, np.array(numbers))]
            assert found[3].all()
            for i, number in enumerate(numbers):
                keep = batched_nms(boxes[:number], scores[:number], classes[:number], 0.5)[:LIMIT]
                for values, expected in zip(found, (boxes, scores, classes)):
                    assert np.array_equal(values[i, : len(keep)], expected[keep])
                assert (found[1][i, len(keep) :] == -np.inf).all()
