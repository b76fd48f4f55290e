"""Recording and replaying, on the CPU, where a recording is the function itself."""

import copy
import pickle

import pytest
import torch

from rsb_d2 import UserError, optimize_for_inference
from rsb_d2.addons.accelerate.graphs import StaticInference
from tests.helpers.models.optimized import check_detections, make_detector, make_images
from tests.helpers.models.static import NothingIsRead


class Record:
    """Runs the function again in a replay, and writes into the same outputs, as a graph does."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function):
        self.recorded += 1
        outputs = function()

        def replay():
            self.replayed += 1
            for name, new in function().items():
                outputs[name].copy_(new)

        return replay, outputs


def make_static(kind, record=None, **kwargs):
    """A model, and a copy that computes as on a GPU."""
    model = make_detector(kind, **kwargs)
    fast = optimize_for_inference(model)
    fast.forward = StaticInference(fast, record)
    return model, fast


@pytest.mark.parametrize(
    "kind", ["mask", *(pytest.param(k, marks=pytest.mark.slow) for k in ("faster", "retinanet"))]
)
def test_a_detector_that_is_replayed(kind):
    record = Record()
    model, fast = make_static(kind, record)
    sizes = [((64, 96),), ((96, 64),), ((64, 96),), ((60, 90),), ((64, 96), (70, 60))]
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
    # Once for each batch size and size as padded.
    assert record.recorded == 3 and record.replayed == len(sizes) * 4
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert again.forward._model is again
        check_detections(fast(images), again(images), score=0, box=0)
    assert record.recorded == 3 and record.replayed == len(sizes) * 4 + 2
    assert fast([]) == []


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_one_wait_per_batch(kind, monkeypatch):
    _, fast = make_static(kind)
    images, lists, to_list = make_images((64, 96), (70, 60)), [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: lists.append(to_list(x)) or lists[-1])
    with NothingIsRead():  # which does not see a list that is read
        found = fast(images)
    assert lists == [[[len(f["instances"]) for f in found], [1, 1]]] and all(lists[0][0])


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
