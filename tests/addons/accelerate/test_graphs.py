"""Recording and replaying, on the CPU, where a recording is the function itself."""

import copy
import pickle

import pytest
import torch

from rsb_d2 import UserError, optimize_for_inference
from rsb_d2.addons.accelerate import graphs
from rsb_d2.addons.accelerate.graphs import replay_dense_parts
from tests.helpers.models.optimized import check_detections, make_detector, make_images


class Record:
    """Runs the function again in a replay, and writes into the same outputs, as a graph does."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, function):
        self.recorded += 1
        outputs = function()

        def replay():
            self.replayed += 1
            found = graphs.pytree.tree_leaves(function())
            for mine, new in zip(graphs.pytree.tree_leaves(outputs), found):
                mine.copy_(new)

        return replay, outputs


@pytest.mark.parametrize(
    "kind", ["faster", *(pytest.param(k, marks=pytest.mark.slow) for k in ("mask", "retinanet"))]
)
def test_a_detector_that_is_replayed(kind):
    model = make_detector(kind)
    fast, record = optimize_for_inference(model), Record()
    replay_dense_parts(fast, record)
    sizes = [((64, 96),), ((96, 64),), ((64, 96),), ((60, 90),), ((64, 96), (70, 60))]
    for size in sizes:
        for seed in (0, 1):
            torch.manual_seed(seed)
            images = make_images(*size)
            check_detections(model(images), fast(images))
            with torch.inference_mode():
                check_detections(model(images), fast(images))
    # Backbone and one more part, for each size as padded.
    assert record.recorded == 2 * 3 and record.replayed == 2 * len(sizes) * 4
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        check_detections(fast(images), again(images), score=0, box=0)
    assert record.recorded == 2 * 3 and record.replayed == 2 * (len(sizes) * 4 + 2)


def test_only_on_a_gpu():
    model = make_detector("faster")
    with pytest.raises(UserError, match='"reduce-overhead", which is for a GPU, not cpu'):
        optimize_for_inference(model, compile="reduce-overhead")
    with pytest.raises(UserError, match="compile is 'max'; write True, False"):
        optimize_for_inference(model, compile="max")
