"""Where a training step and an inference wait for the GPU: nowhere that Detectron2 does not."""

import copy
import itertools
from collections import Counter

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from torchvision.ops import nms

from rsb_d2 import Trainer, optimize_for_inference
from rsb_d2.addons.export.plain.config import plain_config
from rsb_d2.addons.export.plain.weights import plain_weights
from tests.helpers.models.optimized import make_images
from tests.helpers.pretended_gpu import GPU, PretendedGPU
from tests.helpers.runs.resumable_run import make_config
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model
from tests.solver.test_accumulation import make_batches

# With heads that Detectron2 has, so that it can be given the same weights.
KINDS = {
    "mask": ["mask"],
    "cascade": ["cascade", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads"],
    "retinanet": ["retinanet", "MODEL.META_ARCHITECTURE", "RetinaNet"],
}
SIZES = ((96, 128), (64, 100))

# Of an optimized detector on a GPU, where stock does not wait, and how often for two images.
OPTIMIZED = {
    "rsb_d2.modeling.proposals.rpn:_choose nonzero": 1,
    "rsb_d2.modeling.proposals.rpn:_choose tolist": 1,
    "rsb_d2.modeling.proposals.nms:_at_once nms": 4,
    "rsb_d2.addons.accelerate.roi_heads:inference item": 1,
    "rsb_d2.addons.accelerate.roi_heads:inference nonzero": 1,
    "rsb_d2.addons.accelerate.roi_heads:inference tolist": 1,
}
# In all, at most; of stock 43, 55 and 30 in Detectron2 0.6.
IN_ALL = {"mask": 19, "cascade": 28, "retinanet": 30}


def make(kind, *opts):
    config, *of_kind = KINDS[kind]
    if config == "retinanet":
        of_kind += ["MODEL.RETINANET.P7_RELU", "True"]
    cfg = make_seeded_config(config, *of_kind, "MODEL.TIMM.NORM_EVAL", "True", *opts)
    return cfg, make_seeded_model(cfg)


def make_stock(cfg, model):
    """Detectron2's own detector with the weights of one of this project; it takes BGR."""
    plain = plain_config(cfg, "", (("none",), ("none",)))
    plain.MODEL.DEVICE = "cpu"
    stock = build_model(plain)
    stock.load_state_dict(plain_weights(model))
    return stock.eval()


def bgr(batch):
    return [{**item, "image": item["image"].flip(0)} for item in batch]


def training_batch():
    batch = make_batches(SIZES, num_batches=1)[0]
    for item in batch:
        boxes = item["instances"].gt_boxes.tensor.round().int().tolist()
        masks = torch.zeros(len(boxes), *item["image"].shape[1:], dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            mask[y0:y1, x0:x1] = True
        item["instances"].gt_masks = BitMasks(masks)
    return batch


def of_inference(model, batch):
    with torch.no_grad(), PretendedGPU(model) as gpu:
        model(batch)
    return gpu.count


def of_training(model, batch):
    model.train()
    torch.manual_seed(0)
    with EventStorage(1), PretendedGPU(model) as gpu:
        sum(model(batch).values()).backward()
    return gpu.count


def check_optimized(kind, model, images, stock):
    with PretendedGPU(model):
        fast = optimize_for_inference(model)
    found = of_inference(fast, images)
    assert not (found - stock) - Counter(OPTIMIZED), found - stock
    assert found.total() <= min(IN_ALL[kind], stock.total())


def test_what_waits_is_seen_and_nothing_else():
    layer = torch.nn.Linear(4, 4)
    host = torch.ones(2, 4)
    with torch.no_grad(), PretendedGPU(layer) as gpu:
        assert host.device.type == "cpu" and not host.is_cuda
        x = host.to(layer.weight.device)
        assert x.device == layer(x).device == GPU and x.is_cuda
        assert torch.zeros(2, device=GPU).device == GPU and x.new_zeros(1).device == GPU
        host.sum().item(), host.tolist(), host[host > 0], host.nonzero(), host.to("cpu")
        x.repeat_interleave(torch.ones(2, dtype=torch.long, device=GPU), 0, output_size=2)
        x[:, torch.tensor([1, 2], device=GPU)].softmax(0).topk(1)
        assert not gpu.count
        calls = {
            "item": [lambda: x.sum().item(), lambda: bool(x.sum()), lambda: float(x[0, 0])],
            "tolist": [x.tolist],
            "cpu": [x.cpu],
            "to cpu": [lambda: x.to("cpu"), lambda: x.to(torch.device("cpu"), torch.float64)],
            "nonzero": [x.nonzero, lambda: torch.where(x > 0)],
            "mask": [lambda: x[x > 0], lambda: x.__setitem__(x > 5, torch.ones(1, device=GPU))],
            "masked_select": [lambda: x.masked_select(x > 0)],
            "unique": [x.unique, lambda: x.unique(dim=0), x.unique_consecutive],
            "bincount": [x.long()[0].bincount],
            "repeat_interleave": [lambda: x.repeat_interleave(x.long()[:, 0], 0)],
            "nms": [lambda: nms(x, x[:, 0], 0.5)],
        }
        for kind, of_kind in calls.items():
            for call in of_kind:
                gpu.count.clear()
                result = call()
                assert Counter(dict(gpu.count)) == {f"elsewhere {kind}": 1}, kind
        assert result.device == GPU and x.cpu().device.type == "cpu"


@pytest.mark.parametrize(
    "kind",  # the cascade has the mask head as well
    [pytest.param(k, marks=[pytest.mark.slow] if k == "mask" else []) for k in KINDS],
)
def test_a_detector_waits_where_stock_does_and_an_optimized_one_less(kind):
    cfg, model = make(kind)
    stock = make_stock(cfg, model)
    images = make_images(*SIZES)
    expected = of_inference(stock, bgr(images))
    assert sum(expected.values()) > 10
    assert of_inference(model, images) == expected
    check_optimized(kind, model, images, expected)
    batch = training_batch()
    expected = of_training(stock, bgr(batch))
    assert sum(expected.values()) > 10
    assert of_training(model, batch) == expected


# OpenMMLab's heads, of the published detectors, beside those of Detectron2.


def test_the_cascade_samples_in_each_of_its_three_stages():
    cfg, stock = make("cascade")
    model = build_model(make_seeded_config("cascade", "MODEL.TIMM.NORM_EVAL", "True")).eval()
    model.load_state_dict(stock.state_dict(), strict=False)
    images, batch = make_images(*SIZES), training_batch()
    assert of_inference(model, images) == of_inference(stock, images)
    expected, found = of_training(stock, batch), of_training(model, batch)
    new = {place for place in found if place not in expected}
    assert new == {"rsb_d2.modeling.cascade_rcnn:forward mask"}  # what becomes of the ground truth
    assert all(found[place] <= 3 * number for place, number in expected.items())


def test_retinanet_clips_before_nms():
    _, stock = make("retinanet", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.3")
    opts = ["MODEL.TIMM.NORM_EVAL", "True", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.3"]
    model = build_model(make_seeded_config("retinanet", *opts)).eval()
    model.load_state_dict(stock.state_dict())
    images, batch = make_images(*SIZES), training_batch()
    assert of_training(model, batch) == of_training(stock, batch)
    found, expected = of_inference(model.eval(), images), of_inference(stock.eval(), images)
    of_each_image = {
        "detectron2.structures.boxes:clip item": 1,
        "rsb_d2.modeling.retinanet:inference_single_image nonzero": 1,
    }
    assert found - expected == Counter({k: 2 * n for k, n in of_each_image.items()})


# In a step the trainer reads one number beside what Detectron2 does, at most.
STEPS, READS = 2, 1


def test_a_step_of_the_trainer(run_folder, tmp_path):
    opts = ["SOLVER.MAX_ITER", "4", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path)]
    trainer = Trainer(make_config(run_folder, *opts, "SOLVER.CLIP_GRADIENTS.ENABLED", "True"))
    batches = list(itertools.islice(trainer.data_loader, STEPS))
    model = copy.deepcopy(trainer.model)
    model._forward_hooks.clear()
    stock = SimpleTrainer(model, batches, Trainer.build_optimizer(trainer.cfg, model))
    counts = []
    for one in (stock, trainer._trainer):
        for name in ("_data_loader_iter_obj", "_data_loader_iter"):  # Detectron2's main, and 0.6
            if name in vars(one):
                setattr(one, name, iter(batches))
        torch.manual_seed(0)
        with EventStorage(1), PretendedGPU(one.model) as gpu:
            for one.iter in range(1, STEPS + 1):
                one.run_step()
        counts.append(gpu.count)
    more = counts[1] - counts[0]
    assert all(place.startswith("rsb_d2.engine.") for place in more), more
    assert more.total() <= READS * STEPS
    assert not any("solver" in place or "optim" in place for place in counts[1])
