"""The graph of fixed shapes in ONNX: batches, and suppression to the digit."""

import io

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from torch import nn

from rsb_d2.addons.accelerate import static_detector
from rsb_d2.addons.accelerate.static import Chosen, suppress_classes
from tests.helpers.models.exporting import THRESHOLD
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


@pytest.mark.parametrize(
    "kind", ["mask", *(pytest.param(k, marks=pytest.mark.slow) for k in ("cascade", "retinanet"))]
)
def test_a_batch_of_images_of_different_sizes(kind):
    model = make_seeded_model(make_seeded_config(kind, *THRESHOLD)).requires_grad_(False)
    detector = static_detector(model, (100, 160), 4)
    run_all = to_onnx(detector, make_batch([(100, 160)] * 4, (100, 160)))
    images, sizes = make_batch([(100, 160), (33, 160), (100, 61), (70, 70)], (100, 160), seed=4)
    expected, names = detect(model, images, sizes), list(detector(images, sizes))
    for run in run_all:
        outputs = dict(zip(names, map(torch.tensor, run(images.numpy(), sizes.numpy()))))
        assert outputs["is_exact"].all()
        assert sum(check_equal(expected, outputs, score=1e-4)) >= 10


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
