"""Values of configs/pretrain against table 2 of arXiv 2110.00476."""

import math
from collections import Counter
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
from detectron2.solver import build_lr_scheduler
from timm.data.auto_augment import RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.layers import DropPath
from torchvision import transforms as T

from rsb_d2.config.loading import load_config
from rsb_d2.pretraining.classifier import ImageClassifier
from rsb_d2.pretraining.data.loading import build_sampler, build_transform, mix_group
from rsb_d2.solver import build_optimizer
from rsb_d2.solver.epochs import resolve_epochs
from tests.helpers.paths import CONFIGS

IMAGES = 1281167  # of ImageNet-1k's train


class Procedure(NamedTuple):
    """A column of the table."""

    epochs: int
    train_size: int
    rate: float
    weight_decay: float
    smoothing: float
    drop_path: float
    repeats: int
    magnitude: int
    mixup: float

    # The same for all three.
    batch = 2048
    warmup_epochs = 5
    test_size = 224
    cutmix = 1.0
    noise = 0.5
    crop_ratio = 0.95


PROCEDURES = {
    "a1": Procedure(600, 224, 5e-3, 0.01, 0.1, 0.05, 3, 7, 0.2),
    "a2": Procedure(300, 224, 5e-3, 0.02, 0.0, 0.05, 3, 7, 0.1),
    "a3": Procedure(100, 160, 8e-3, 0.02, 0.0, 0.0, 1, 6, 0.1),
}


def config(name, *opts):
    path = str(CONFIGS / "pretrain" / f"resnet50_rsb_{name}.yaml")
    return load_config(path, ["MODEL.DEVICE", "cpu", *opts])


@pytest.fixture(params=PROCEDURES, scope="module")
def procedure(request):
    return PROCEDURES[request.param], config(request.param)


def test_training_transform(procedure):
    table, cfg = procedure
    crop, flip, augment, *rest = build_transform(cfg, is_train=True).transforms
    assert isinstance(crop, RandomResizedCropAndInterpolation)
    assert tuple(crop.size) == (table.train_size, table.train_size)
    assert crop.scale == (0.08, 1.0) and crop.ratio == pytest.approx((3 / 4, 4 / 3))
    assert crop.interpolation == T.InterpolationMode.BICUBIC
    assert isinstance(flip, T.RandomHorizontalFlip) and flip.p == 0.5
    assert isinstance(augment, RandAugment) and augment.num_layers == 2
    names = {op.name for op in augment.ops}
    assert "PosterizeIncreasing" in names and "Posterize" not in names
    for op in augment.ops:
        assert op.magnitude == table.magnitude and op.magnitude_std == table.noise
    # No jitter, no erasing; the model normalizes.
    assert [type(t).__name__ for t in rest] == ["MaybePILToTensor"]


def test_test_transform(procedure):
    table, cfg = procedure
    resize, crop, *rest = build_transform(cfg, is_train=False).transforms
    assert resize.size == int(table.test_size / table.crop_ratio) == 235
    assert resize.interpolation == T.InterpolationMode.BICUBIC
    assert tuple(crop.size) == (table.test_size, table.test_size)
    assert [type(t).__name__ for t in rest] == ["MaybePILToTensor"]


def test_model_and_mixing(procedure):
    table, cfg = procedure
    model = ImageClassifier(cfg)
    mixup = model._mix.mixup
    assert (mixup.mixup_alpha, mixup.cutmix_alpha) == (table.mixup, table.cutmix)
    assert (mixup.switch_prob, mixup.mix_prob, mixup.mode) == (0.5, 1.0, "batch")
    assert mix_group(cfg, cfg.SOLVER.IMS_PER_BATCH) == 256
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert max(rates, default=0.0) == pytest.approx(table.drop_path)
    assert model.num_classes == 1000 and model.network.num_classes == 1000
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training for norm in model.train().modules() if norm in norms)
    assert all(p.requires_grad for p in model.parameters())
    # timm's mean and deviation, in RGB.
    data = timm.get_pretrained_cfg("resnet50")
    np.testing.assert_allclose(model.pixel_mean.flatten() / 255, data.mean, rtol=1e-4)
    np.testing.assert_allclose(model.pixel_std.flatten() / 255, data.std, rtol=1e-4)


def test_loss(procedure):
    """Binary cross-entropy with 1 for each mixed class, smoothed as in the table."""
    table, cfg = procedure
    model = ImageClassifier(cfg)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 1000, generator=generator)
    shares = torch.zeros(2, 1000)
    shares[0, 3], shares[0, 7] = 0.7, 0.3
    shares[1, 5] = 1.0
    ones = (shares > 0).double()
    targets = ones * (1 - table.smoothing) + table.smoothing / 1000
    p = torch.sigmoid(scores.double())
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert model._loss(scores, shares).item() == pytest.approx(expected.item(), rel=1e-6)


def test_optimizer(procedure):
    table, cfg = procedure
    model = ImageClassifier(cfg)
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is timm.optim.Lamb
    names = {p: n for n, p in model.named_parameters()}
    decays = {names[p]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays.keys() == set(names.values())
    for name, decay in decays.items():
        weight = dict(model.named_parameters())[name]
        assert decay == (table.weight_decay if weight.dim() > 1 else 0.0), name
    assert {g["lr"] for g in optimizer.param_groups} == {table.rate}
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert not cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.AMP.ENABLED


def test_schedule(procedure):
    table, cfg = procedure
    cfg = cfg.clone()
    resolve_epochs(cfg, IMAGES)
    per_epoch = IMAGES / table.batch
    total, warmup = cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS
    assert cfg.SOLVER.IMS_PER_BATCH == table.batch
    assert total == math.ceil(table.epochs * per_epoch)
    assert warmup == math.ceil(table.warmup_epochs * per_epoch)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    multiplier = build_lr_scheduler(cfg, optimizer)._multiplier

    def rate(iteration):
        return cfg.SOLVER.BASE_LR * multiplier(iteration / total)

    assert rate(0) == pytest.approx(1e-4, rel=1e-3)
    for iteration in (warmup, total // 3, total // 2, total - 1):
        cosine = 0.5 * (1 + math.cos(math.pi * iteration / total))
        assert rate(iteration) == pytest.approx(table.rate * cosine, rel=1e-6)
    # Linear in between.
    middle = (rate(0) + rate(warmup)) / 2
    assert rate(warmup // 2) == pytest.approx(middle, rel=2e-3)


def test_sampler(procedure):
    """An epoch has as many images as the data; with repeats, a third of them three times."""
    table, cfg = procedure
    num_images, epochs = 1000, 2
    sampler = build_sampler(cfg, num_images, seed=5)
    # timm's sampler rounds an epoch down to a multiple of 256.
    of_epoch = num_images if table.repeats == 1 else num_images // 256 * 256
    stream = list(islice(sampler, epochs * of_epoch))
    halves = stream[:of_epoch], stream[of_epoch:]
    for epoch in halves:
        counts = Counter(epoch)
        assert set(islice(counts.values(), of_epoch // table.repeats - 1)) == {table.repeats}
        assert len(counts) == math.ceil(of_epoch / table.repeats)
    assert halves[0] != halves[1]
    assert stream == list(islice(build_sampler(cfg, num_images, seed=5), len(stream)))
    assert stream != list(islice(build_sampler(cfg, num_images, seed=6), len(stream)))


@pytest.mark.parametrize("name", ["resnet18", "resnet152"])
def test_other_resnets_by_one_key(name):
    with torch.device("meta"):
        model = ImageClassifier(config("a1", "MODEL.TIMM.NAME", name))
        expected = timm.create_model(name)
    shapes = {n: p.shape for n, p in expected.named_parameters()}
    assert {n: p.shape for n, p in model.network.named_parameters()} == shapes
