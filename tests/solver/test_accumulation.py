"""A batch in parts gives the gradients, the losses and the weights of the whole batch."""

import copy

import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from rsb_d2.engine.amp import AMPTrainer
from rsb_d2.solver import build_optimizer
from rsb_d2.solver.accumulation import AccumulatingTrainer, check_accumulation
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model

NO_STATISTICS = ["MODEL.TIMM.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "0"]
# Nothing is drawn and nothing left out: every anchor counts, and each image has as many proposals.
NO_SAMPLING = [
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "10"),
    *("MODEL.RPN.NMS_THRESH", "1.0", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "0"),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "20"),
    *("MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"),
]
KINDS = {
    "faster": ("faster", NO_SAMPLING),
    "OpenMMLab's RetinaNet": ("retinanet", []),
    "Detectron2's RetinaNet": ("retinanet", ["MODEL.META_ARCHITECTURE", "RetinaNet"]),
}


def make_batches(sizes, num_batches=3, seed=0):
    """Images of these sizes, with one or several objects, none in the last."""
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(num_batches):
        batch = []
        for i, (height, width) in enumerate(sizes):
            count = 0 if i == len(sizes) - 1 else int(rng.integers(1, 4))
            corners = rng.uniform(0, 0.6, (count, 2)) * [width, height]
            boxes = np.concatenate([corners, corners + rng.uniform(12, 30, (count, 2))], 1)
            instances = Instances((height, width))
            instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
            instances.gt_classes = torch.tensor(rng.integers(0, 6, count), dtype=torch.long)
            image = torch.tensor(rng.integers(0, 256, (3, height, width)), dtype=torch.uint8)
            item = {"image": image, "instances": instances, "height": height, "width": width}
            batch.append(item)
        batches.append(batch)
    return batches


def steps(trainer, num_steps):
    """The gradients and the logged total losses of some steps."""
    gradients, losses = [], []
    trainer.model.train()
    for trainer.iter in range(num_steps):
        with EventStorage(trainer.iter) as storage:
            trainer.run_step()
            losses.append({k: v for k, (v, _) in storage.latest().items() if "loss" in k})
        named = trainer.model.named_parameters()
        gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
    return gradients, losses


def check_equal_steps(found, expected, tolerance=1e-4):
    for ours, theirs in zip(found[0], expected[0], strict=True):
        assert ours.keys() == theirs.keys() and len(ours) > 2
        for name, gradient in theirs.items():
            scale = gradient.abs().max()
            difference = (ours[name] - gradient).abs().max()
            assert difference <= tolerance * max(scale, 1e-3), name
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def make_trainers(model, batches, num_parts, lr=1e-3):
    trainers = []
    for _ in range(2):
        m = copy.deepcopy(model)
        trainers.append(SimpleTrainer(m, batches, torch.optim.SGD(m.parameters(), lr=lr)))
    trainers[1] = AccumulatingTrainer(trainers[1])
    trainers[1].accumulate(num_parts)
    return trainers


@pytest.mark.parametrize(
    "kind, num_parts",
    [
        ("faster", 4),
        pytest.param("faster", 2, marks=pytest.mark.slow),
        *((kind, 2) for kind in KINDS if kind != "faster"),
        *(pytest.param(k, 4, marks=pytest.mark.slow) for k in KINDS if k != "faster"),
    ],
)
def test_the_gradients_of_a_detector(kind, num_parts, device):
    config, opts = KINDS[kind]
    cfg = make_seeded_config(config, *NO_STATISTICS, *opts, "MODEL.DEVICE", device)
    model = make_seeded_model(cfg).train()
    sizes = [(64, 96), (50, 70), (96, 64), (96, 96)]  # each part would be padded otherwise
    whole, in_parts = make_trainers(model, make_batches(sizes), num_parts)
    expected = steps(whole, 3)
    check_equal_steps(steps(in_parts, 3), expected)
    # What the next step is divided by.
    normalizer = getattr(whole.model, "loss_normalizer", None)
    assert getattr(in_parts.model, "loss_normalizer", None) == pytest.approx(normalizer)
    assert (normalizer is not None) == (kind == "Detectron2's RetinaNet")
    assert len({losses["total_loss"] for losses in expected[1]}) == 3  # the weights change


class Classifier(nn.Module):
    """Mean cross-entropy of images that are vectors, without statistics of the batch."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
        self.batch_sizes = []

    def forward(self, batch):
        self.batch_sizes.append(len(batch))
        device = self.layers[0].weight.device
        scores = self.layers(torch.stack([item["image"] for item in batch]).to(device))
        labels = torch.tensor([item["label"] for item in batch], device=device)
        return {"loss_cls": nn.functional.cross_entropy(scores, labels)}


def make_classifier_batches(num_batches=3, size=8):
    generator = torch.Generator().manual_seed(0)
    return [
        [{"image": torch.randn(5, generator=generator), "label": i % 3} for i in range(size)]
        for _ in range(num_batches)
    ]


def test_the_gradients_of_a_classifier(device):
    torch.manual_seed(0)
    whole, in_parts = make_trainers(Classifier().to(device), make_classifier_batches(), 4, lr=0.1)
    check_equal_steps(steps(in_parts, 3), steps(whole, 3))
    assert whole.model.batch_sizes == [8] * 3 and in_parts.model.batch_sizes == [2] * 12


def test_clipping_is_of_the_whole_gradient(device):
    opts = ["SOLVER.OPTIMIZER", "LAMB", "SOLVER.LAMB.MAX_GRAD_NORM", "0.01"]
    opts += ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.05"]
    weights = []
    for num_parts in (1, 4):
        torch.manual_seed(0)
        model = Classifier().to(device)
        optimizer = build_optimizer(load_config("", opts), model)
        trainer = AccumulatingTrainer(SimpleTrainer(model, make_classifier_batches(), optimizer))
        trainer.accumulate(num_parts)
        gradients, _ = steps(trainer, 3)
        largest = max(g.abs().max().item() for g in gradients[0].values())
        assert largest == pytest.approx(0.05)
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


# --- mixed precision


class OverflowsOnce(Classifier):
    """Its gradient is infinite in one part of one step."""

    def forward(self, batch):
        losses = super().forward(batch)
        if len(self.batch_sizes) == 6:  # the second part of the second step
            losses["loss_cls"] = losses["loss_cls"] + self.layers[0].weight.sum() * 1e38
        return losses


def test_an_overflow_in_one_part_skips_the_step(device):
    torch.manual_seed(0)
    model = OverflowsOnce().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = AMPTrainer(SimpleTrainer(model, make_classifier_batches(), optimizer), torch.float16)
    trainer.accumulate(4)
    trainer.dtype = torch.bfloat16  # to compute in, as not all processors do in float16
    trainer.grad_scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    vectors, scales = [nn.utils.parameters_to_vector(model.parameters()).clone()], []
    for trainer.iter in range(3):
        with EventStorage(trainer.iter):
            trainer.run_step()
        vectors.append(nn.utils.parameters_to_vector(model.parameters()).clone())
        scales.append(trainer.grad_scaler.get_scale())
    assert scales == [1024.0, 512.0, 512.0]
    assert [torch.equal(a, b) for a, b in zip(vectors, vectors[1:])] == [False, True, False]


def test_gradients_are_unscaled_before_they_are_clipped(device):
    """AdamW's fused step, which can take scaled gradients, must not have them clipped so."""
    opts = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    opts += ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "100.0"]
    gradients = []
    for scale in (None, 65536.0):
        torch.manual_seed(0)
        model = Classifier().to(device)
        optimizer = build_optimizer(load_config("", opts), model)
        inner = SimpleTrainer(model, make_classifier_batches(), optimizer)
        trainer = AMPTrainer(inner, torch.bfloat16)
        if scale:
            trainer.grad_scaler = torch.amp.GradScaler(device, init_scale=scale)
        gradients.append(steps(trainer, 1)[0][0])
    for name, gradient in gradients[0].items():  # far below the limit, so none is changed
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_parts", [1, 2])
def test_the_options_of_detectron2s_main_branch(num_parts):
    """Metrics written in the background, with the iteration that they are of, and its own hook."""
    model = Classifier()
    inner = SimpleTrainer(
        model, make_classifier_batches(), torch.optim.SGD(model.parameters(), lr=0.1)
    )
    submitted, calls = [], []

    class Executor:
        def submit(self, function, *args, **kwargs):
            submitted.append((function.__name__, kwargs))

    inner.async_write_metrics, inner.concurrent_executor = True, Executor()
    inner.after_backward = lambda: calls.append(len(submitted))
    trainer = AccumulatingTrainer(inner)
    trainer.accumulate(num_parts)
    for trainer.iter in range(2):
        with EventStorage(trainer.iter):
            trainer.run_step()
    assert submitted == [("_write_metrics", {"iter": 0}), ("_write_metrics", {"iter": 1})]
    assert calls == [0, 1]


# --- bad values


@pytest.mark.parametrize("batch, steps, world_size", [(16, 3, 1), (16, 8, 4), (2, 4, 1)])
def test_a_batch_that_cannot_be_divided(batch, steps, world_size):
    opts = ["SOLVER.IMS_PER_BATCH", str(batch), "SOLVER.ACCUMULATE_STEPS", str(steps)]
    says = f"ACCUMULATE_STEPS is {steps}.* multiple of {steps * world_size}, and is {batch}"
    with pytest.raises(UserError, match=says) as error:
        check_accumulation(load_config("", opts), world_size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "batch, steps, world_size, reference",
    [(16, 4, 4, 0), (16, 1, 3, 0), (4, 2, 4, 1), (7, 7, 1, 0)],
)
def test_batches_that_can(batch, steps, world_size, reference):
    opts = ["SOLVER.IMS_PER_BATCH", str(batch), "SOLVER.ACCUMULATE_STEPS", str(steps)]
    opts += ["SOLVER.REFERENCE_WORLD_SIZE", str(reference)]
    check_accumulation(load_config("", opts), world_size)
