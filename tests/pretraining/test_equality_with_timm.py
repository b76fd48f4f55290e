"""Twenty steps of this trainer, and of timm's parts combined as in its train.py."""

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from rsb_d2 import Trainer
from rsb_d2.data.random_state import random_state, set_random_state
from tests.helpers.small_pretraining import make_config, make_objects

STEPS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_objects(tmp_path_factory.mktemp("objects"))


def train_ours(cfg):
    """Return the losses, the weights before and after, and the random state before."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    before = {n: t.clone() for n, t in trainer.model.network.state_dict().items()}
    random, losses = random_state(), []
    trainer.model.register_forward_hook(
        lambda model, _, out: losses.append(out["loss_cls"].item()) if model.training else None
    )
    trainer.train()
    return losses, before, trainer.model.network.state_dict(), random


def train_timm(cfg, weights, random):
    """timm's train.py with --opt lamb --sched cosine --sched-on-updates --channels-last."""
    batches = iter(Trainer.build_train_loader(cfg))
    keys, images = cfg.MODEL.CLASSIFIER, cfg.INPUT.CLASSIFIER
    model = timm.create_model("resnet18", num_classes=4, drop_path_rate=keys.DROP_PATH_RATE)
    model.load_state_dict(weights)
    model = model.to(cfg.MODEL.DEVICE, memory_format=torch.channels_last).train()
    mixup = Mixup(
        mixup_alpha=images.MIXUP_ALPHA,
        cutmix_alpha=images.CUTMIX_ALPHA,
        label_smoothing=keys.LABEL_SMOOTHING,
        num_classes=4,
    )
    thresh = keys.TARGET_THRESH if keys.TARGET_THRESH >= 0 else None
    loss_fn = BinaryCrossEntropy(target_threshold=thresh)
    if keys.LOSS == "ce":
        loss_fn = SoftTargetCrossEntropy()
    optimizer = create_optimizer_v2(
        model, opt="lamb", lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
    )
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=4,
        warmup_epochs=0,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=STEPS // 4,
    )
    # Normalized as by timm's PrefetchLoader.
    mean, std = (
        torch.tensor([255 * x for x in values], device=cfg.MODEL.DEVICE).view(1, 3, 1, 1)
        for values in (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    )
    set_random_state(random)  # of stochastic depth
    losses = []
    for step in range(STEPS):
        batch = next(batches)
        x = torch.stack([image["image"] for image in batch]).to(cfg.MODEL.DEVICE)
        x = x.float().sub_(mean).div_(std)
        target = torch.tensor([image["label"] for image in batch], device=cfg.MODEL.DEVICE)
        (seed,) = {image["mix_seed"] for image in batch}
        np.random.seed(np.random.SeedSequence(seed).generate_state(4))
        x, target = mixup(x, target)
        loss = loss_fn(model(x.contiguous(memory_format=torch.channels_last)), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step_update(num_updates=step + 1)
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize(
    "opts",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("MODEL.CLASSIFIER.LABEL_SMOOTHING", "0.1"),
        pytest.param(
            ("MODEL.CLASSIFIER.LABEL_SMOOTHING", "0.1", "MODEL.CLASSIFIER.TARGET_THRESH", "-1.0"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("MODEL.CLASSIFIER.LABEL_SMOOTHING", "0.1", "MODEL.CLASSIFIER.LOSS", "ce"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["A2", "A2 and smoothing", "smoothed shares", "cross-entropy"],
)
def test_twenty_steps_equal_timms(data, tmp_path, opts, device):
    steps = ("SOLVER.MAX_ITER", str(STEPS), "MODEL.DEVICE", device)
    cfg = make_config(data, tmp_path, *steps, *opts)
    assert cfg.SOLVER.OPTIMIZER == "LAMB" and cfg.SOLVER.WEIGHT_DECAY == 0.02
    assert cfg.INPUT.CLASSIFIER.MIXUP_ALPHA == 0.1 and cfg.MODEL.CLASSIFIER.DROP_PATH_RATE == 0.05
    near = 1e-6 if device == "cpu" else 1e-4  # cuDNN chooses kernels at run time
    losses, before, after, random = train_ours(cfg)
    expected_losses, expected = train_timm(cfg, before, random)
    assert len(losses) == STEPS and len(set(losses)) == STEPS
    np.testing.assert_allclose(losses, expected_losses, rtol=near)
    changed = 0
    for name, weight in after.items():
        scale = expected[name].float().abs().max()
        assert (weight - expected[name]).float().abs().max() <= near * scale, name
        changed += bool((weight - before[name]).float().abs().max() > 1e-3 * scale)
    assert changed > 50
