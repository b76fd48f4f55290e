"""Recording and replaying; on the CPU a recording is the function itself."""

import copy
import importlib
import pickle

import pytest
import torch
from detectron2.config import get_cfg

from rsb_d2 import UserError, optimize_for_inference
from rsb_d2.addons.accelerate import graphs
from rsb_d2.addons.accelerate.graphs import StaticInference
from rsb_d2.engine.tasks import Task
from rsb_d2.memory import send_images
from rsb_d2.predictor import Predictor
from tests.helpers.models.optimized import check_detections, make_detector, make_images
from tests.helpers.models.simulated_gpu import GPU, OnGPU, SimulatedGPU

# The module, not the function of that name.
optimize = importlib.import_module("rsb_d2.addons.accelerate.optimize")


class Record:
    """Counts; on the CPU runs the function again in a replay, into the same outputs."""

    def __init__(self, device="cpu"):
        self.recorded = self.replayed = 0
        self._record = self._simulate
        if device == "cuda":
            self._record = graphs.cuda_graphs(torch.device(device))

    def __call__(self, function):
        self.recorded += 1
        run, outputs = self._record(function)

        def replay():
            assert graphs._LOCK.locked()  # another thread must not write into the inputs
            self.replayed += 1
            run()

        return replay, outputs

    def _simulate(self, function):
        outputs = function()
        return lambda: [outputs[name].copy_(new) for name, new in function().items()], outputs


def make_static(kind, record=None, **kwargs):
    """A model, and a copy that computes as on a GPU."""
    model = make_detector(kind, **kwargs)
    fast = optimize_for_inference(model)
    fast.forward = StaticInference(fast, record)
    return model, fast


@pytest.mark.parametrize(
    "kind", ["mask", *(pytest.param(k, marks=pytest.mark.slow) for k in ("faster", "retinanet"))]
)
def test_a_detector_that_is_replayed(kind, device):
    record = Record(device)
    model, fast = make_static(kind, record, device=device)
    sizes = [((64, 96),), ((96, 64),), ((64, 96),), ((60, 90),), ((64, 96), (60, 70))]
    for size in sizes:
        images = make_images(*size)
        for image in images:
            image.update(height=77, width=50)
        found = []
        for _ in range(2):
            found.append(fast(images))
            with torch.inference_mode():
                check_detections(model(images), fast(images))
        # What was found is not overwritten by the next call.
        check_detections(model(images), found[0])
    # Each batch size and size as padded, when it has come again.
    assert record.recorded == 3 and record.replayed == len(sizes) * 4 - 3
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert again.forward._model is again
        check_detections(fast(images), again(images), score=0, box=0)
    assert record.recorded == 3 and record.replayed == len(sizes) * 4 - 3 + 2
    assert fast([]) == []


def test_sizes_that_are_not_recorded(monkeypatch, caplog):
    monkeypatch.setattr(graphs, "_MAX_SIZES", 1)
    record = Record()
    model, fast = make_static("faster", record)
    batches = [make_images(size) for size in ((64, 96), (96, 64), (96, 96))]
    expected = [model(batch) for batch in batches]
    for batch, found in [*zip(batches, expected)] * 3:
        check_detections(found, fast(batch))
    assert record.recorded == 1 and record.replayed == 2 and not caplog.records

    def fail(function):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    fast.forward = StaticInference(fast, fail)
    for batch, found in [*zip(batches, expected)] * 2:
        check_detections(found, fast(batch))
    (warning,) = caplog.messages
    assert warning.endswith("without CUDA graphs: operation not permitted when stream is capturing")


@pytest.mark.parametrize("kind", ["mask", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_one_wait_per_batch(kind, monkeypatch):
    """In prediction and evaluation, and in a model whose results stay on the GPU."""
    model, images = make_detector(kind), make_images((64, 96), (70, 60))
    for image in images:
        image.update(height=77, width=50)
    expected, records = model(images), []
    monkeypatch.setattr(
        optimize, "cuda_graphs", lambda device: records.append(Record()) or records[-1]
    )
    with SimulatedGPU(monkeypatch) as gpu:
        gpu.send(model)
        stays = optimize_for_inference(model)
        predictor = Predictor(get_cfg(), optimize_for_inference(model, to_cpu=True), None)
        evaluated = Task().optimize(model)
        for _ in range(2):
            found = [{"instances": instances} for instances in predictor(images)]
            assert gpu.waits == ["event"]
            assert not any(isinstance(f["instances"].scores, OnGPU) for f in found)
            check_detections(expected, found, score=1e-3)
            check_detections(expected, evaluated(send_images(images, GPU)), score=1e-3)
            assert gpu.waits == ["event"] * 2
            on_gpu = stays(send_images(images, GPU))
            assert gpu.waits == ["event"] * 2 + ["tolist"]
            assert all(isinstance(f["instances"].scores, OnGPU) for f in on_gpu)
            gpu.waits.clear()
        # Prediction and evaluation, but not what stays.
        assert [(record.recorded, record.replayed) for record in records] == [(1, 1)] * 2
        # One batch is computed while another one is read.
        finish = [predictor.start([image]) for image in images]
        assert not gpu.waits
        found = [{"instances": finish.pop(0)()[0]} for _ in images]
        assert gpu.waits == ["event"] * 2
        check_detections(found[:1], [{"instances": predictor(images[:1])[0]}], score=0, box=0)
        gpu.waits.clear()
        Predictor(get_cfg(), stays, None)(images)
        assert gpu.waits == ["tolist", "synchronize"]


def test_inexact_images_are_detected_by_the_model_itself(monkeypatch):
    model, fast = make_static("faster")
    images = make_images((64, 96), (70, 60))
    run = StaticInference._run

    def first_is_inexact(self, *args):
        outputs = run(self, *args)
        assert outputs["is_exact"].all()
        is_exact = torch.tensor([False, True])
        return {**outputs, "scores": outputs["scores"] * is_exact[:, None], "is_exact": is_exact}

    monkeypatch.setattr(StaticInference, "_run", first_is_inexact)
    check_detections(model(images), fast(images))


def test_only_on_a_gpu():
    model = make_detector("faster")
    with pytest.raises(UserError, match='"reduce-overhead", which is for a GPU, not cpu'):
        optimize_for_inference(model, compile="reduce-overhead")
    with pytest.raises(UserError, match="compile is 'max'; write True, False"):
        optimize_for_inference(model, compile="max")
    model.proposal_generator.__class__ = type("OtherRPN", (type(model.proposal_generator),), {})
    with pytest.raises(UserError, match="^OtherRPN has no form with fixed shapes"):
        StaticInference(model)
