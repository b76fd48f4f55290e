"""The image classifier: a complete timm model as a Detectron2 meta architecture."""

from contextlib import contextmanager
from itertools import groupby
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from ..checkpoint.files import StateDict
from ..checkpoint.formats import DETECTOR, recognize
from ..checkpoint.loading import (
    LoadReport,
    check_backbone,
    classifier_names,
    incomplete,
    match_backbone,
    split_detector,
    without_spare_counters,
)
from ..errors import UserError
from ..modeling.build import check_pixel_format
from ..modeling.norm import BATCH_NORM_TYPES, NORM_POLICIES, apply_norm_policy
from ..modeling.spec import classifier_spec
from ..modeling.timm_backbone import check_model_name
from ..registration import register

LOSSES = ("bce", "ce")
_PREFIX = "network."

# Seed of a group of mixed images: that of the training, and the number of the group in the data.
MixSeed = Tuple[int, ...]


@register(META_ARCH_REGISTRY, waits=True)  # other projects may use the name
class ImageClassifier(nn.Module):
    """Any timm model with its classifier, trained as by timm's ``train.py``.

    In training it mixes the images that have a seed for that, and returns the loss; in evaluation
    it returns the scores. The timm model is ``network``.
    """

    @configurable
    def __init__(
        self,
        *,
        name: str,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
        norm: str = "BN",
        norm_eval: bool = False,
        loss: str = "bce",
        label_smoothing: float = 0.0,
        target_thresh: float | None = None,
        smooth_after_thresh: bool = False,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mix_prob: float = 1.0,
        switch_prob: float = 0.5,
    ):
        """
        Args:
            name (str): timm's name of the model, with or without a tag.
            num_classes (int): outputs of the classifier.
            pixel_mean, pixel_std (sequence of float): of RGB in 0 ... 255.
            drop_path_rate (float): stochastic depth of the deepest block, from 0 to below 1.
            dropout (float): before the classifier, from 0 to below 1.
            norm (str): of batch norm, see :func:`rsb_d2.modeling.norm.apply_norm_policy`.
            norm_eval (bool): normalize with the running statistics in training as well.
            loss (str): ``"bce"``, binary cross-entropy, or ``"ce"``, cross-entropy.
            label_smoothing (float): part of each target that all classes share, from 0 to below 1.
            target_thresh (float or None): for ``"bce"``: targets above it become 1, others 0.
                ``None`` leaves them as they are.
            smooth_after_thresh (bool): smooth after that threshold instead of before it.
            mixup_alpha, cutmix_alpha (float): of Mixup and CutMix; 0 is off.
            mix_prob (float): probability of mixing.
            switch_prob (float): probability of CutMix when images are mixed and both are on.

        Raises:
            UserError: if timm has no such model or cannot build it with these values.
        """
        super().__init__()
        if norm not in NORM_POLICIES:
            raise UserError(f"MODEL.TIMM.NORM: {norm!r} is not one of {', '.join(NORM_POLICIES)}")
        self.name = name
        self.norm_eval = norm_eval
        self.num_classes = num_classes
        self.network = _create_network(name, num_classes, drop_path_rate, dropout)
        apply_norm_policy(self.network, norm)
        self.register_buffer("pixel_mean", _per_channel(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", _per_channel(pixel_std), persistent=False)

        late = loss == "bce" and smooth_after_thresh and target_thresh is not None
        self._late_smoothing = label_smoothing if late else 0.0
        smoothing = 0.0 if late else label_smoothing
        self._target_thresh = target_thresh
        self._mix = None
        if mixup_alpha or cutmix_alpha:
            mixup = Mixup(
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
                prob=mix_prob,
                switch_prob=switch_prob,
                label_smoothing=smoothing,
                num_classes=num_classes,
            )
            self._mix = SeededMixup(mixup)
        # For targets with shares of several classes, and for one class per image.
        if loss == "bce":
            thresh = None if self._late_smoothing else target_thresh
            self.loss_of_shares = BinaryCrossEntropy(target_threshold=thresh)
            self.loss_of_labels = BinaryCrossEntropy(smoothing, target_threshold=thresh)
        elif loss == "ce":
            self.loss_of_shares = SoftTargetCrossEntropy()
            self.loss_of_labels = (
                LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
            )
        else:
            raise UserError(f"MODEL.CLASSIFIER.LOSS is {loss!r}; write {' or '.join(LOSSES)}")
        self.train(self.training)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        spec = classifier_spec(cfg)
        check_pixel_format(cfg, spec.name)
        classifier, images = cfg.MODEL.CLASSIFIER, cfg.INPUT.CLASSIFIER
        return {
            "name": spec.name,
            "num_classes": classifier.NUM_CLASSES,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "drop_path_rate": classifier.DROP_PATH_RATE,
            "dropout": classifier.DROPOUT,
            "norm": spec.norm,
            "norm_eval": spec.norm_eval,
            "loss": classifier.LOSS,
            "label_smoothing": classifier.LABEL_SMOOTHING,
            "target_thresh": classifier.TARGET_THRESH if classifier.TARGET_THRESH >= 0 else None,
            "smooth_after_thresh": classifier.SMOOTH_AFTER_THRESH,
            "mixup_alpha": images.MIXUP_ALPHA,
            "cutmix_alpha": images.CUTMIX_ALPHA,
            "mix_prob": images.MIX_PROB,
            "switch_prob": images.SWITCH_PROB,
        }

    @property
    def device(self) -> torch.device:
        """torch.device: of the model."""
        return self.pixel_mean.device

    def forward(self, batch: List[Dict[str, Any]]) -> Dict[str, torch.Tensor] | torch.Tensor:
        """
        Args:
            batch (list[dict]): for each image ``image``, an RGB uint8 tensor of shape (3, H, W),
                all of one size; in training ``label``, a class index, and for mixing ``mix_seed``,
                see :class:`SeededMixup`.

        Returns:
            dict[str, Tensor] or Tensor: in training ``loss_cls``; in evaluation the scores of
            shape (N, classes), before sigmoid or softmax.
        """
        images = self.normalize(batch)
        if not self.training:
            return self.network(images)
        images, targets = self.mix(images, batch)
        # float32, because the loss sums over a thousand classes.
        return {"loss_cls": self._loss(self.network(images).float(), targets)}

    def normalize(self, batch: List[Dict[str, Any]]) -> torch.Tensor:
        """Return the normalized images of a batch, of shape (N, 3, H, W), before mixing."""
        images = torch.stack([x["image"] for x in batch]).to(self.device, non_blocking=True)
        return images.to(self.pixel_mean.dtype).sub_(self.pixel_mean).div_(self.pixel_std)

    def mix(self, images: torch.Tensor, batch: List[Dict[str, Any]]) -> tuple:
        """Mix the normalized images of a batch, in place, if it has seeds.

        Returns:
            Tensor, Tensor: the images, and the targets: (N, classes) if mixed, otherwise the
            labels, (N,).
        """
        labels = torch.tensor([x["label"] for x in batch], device=self.device)
        if self._mix is None or "mix_seed" not in batch[0]:
            return images, labels
        return images, self._mix(images, labels, [x["mix_seed"] for x in batch])

    def _loss(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._late_smoothing:
            if targets.dim() == 1:
                targets = nn.functional.one_hot(targets, self.num_classes).to(scores.dtype)
            ones = targets.gt(self._target_thresh).to(scores.dtype)
            part = self._late_smoothing
            return self.loss_of_shares(scores, ones * (1 - part) + part / self.num_classes)
        loss = self.loss_of_labels if targets.dim() == 1 else self.loss_of_shares
        return loss(scores, targets)

    def load_pretrained(self, *arguments: Any) -> LoadReport:
        """Load weights of any known format; see :func:`load_classifier`."""
        return load_classifier(self, *arguments)

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Set the mode; with ``norm_eval``, batch norm stays in evaluation mode."""
        super().train(mode)
        if self.norm_eval:
            for module in self.network.modules():
                if isinstance(module, BATCH_NORM_TYPES):
                    module.eval()
        return self


def _per_channel(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float32).view(-1, 1, 1)


def _create_network(
    name: str, num_classes: int, drop_path_rate: float, dropout: float
) -> nn.Module:
    check_model_name(name)
    # 0 is not passed on, because not every model of timm has the argument.
    rates = {"drop_path_rate": drop_path_rate or None, "drop_rate": dropout or None}
    try:
        network = timm.create_model(name, pretrained=False, num_classes=num_classes, **rates)
    except TypeError as e:
        keys = {"drop_path_rate": "DROP_PATH_RATE", "drop_rate": "DROPOUT"}
        unknown = [f"MODEL.CLASSIFIER.{keys[k]}" for k, v in rates.items() if v and k in str(e)]
        if not unknown:
            raise
        raise UserError(f"{unknown[0]}: timm's {name} has none; write 0.0") from e
    return network


# ---- weights ----


def load_classifier(
    model: nn.Module,
    weights: StateDict,
    source: str,
    path: str = "",
    complete: bool = False,
) -> LoadReport:
    """Load a state dict of any known format into an image classifier.

    Of a detector, the backbone is loaded. The last layer is kept if it has another shape, unless
    the weights must be ``complete``. Arguments, result and errors as
    :func:`rsb_d2.checkpoint.loading.load_weights`.
    """
    format = recognize(weights)
    try:
        converted = format.convert(weights)
    except UserError as e:
        raise UserError(f"{source}: {e}") from e
    others = {}
    if format.holds == DETECTOR:
        converted, others = split_detector(converted)
    last = tuple(f"{name}." for name in classifier_names(model.name))
    network = model.network.state_dict()
    body = {n: t for n, t in network.items() if not n.startswith(last)}
    found = match_backbone(converted, body, model.name, format)
    check_backbone(found, len(body), model.name, source, format)

    report = LoadReport(source, path or source, format.name, (_PREFIX,))
    fitting = dict(found.fitting)
    unused = set(found.unused)
    for name in (n for n in network if n.startswith(last)):
        if name in converted and converted[name].shape == network[name].shape:
            fitting[name] = converted[name]
            unused.discard(name)
            continue
        report.initial.append(_PREFIX + name)
        if name in converted:
            shapes = tuple(converted[name].shape), tuple(network[name].shape)
            report.other_shape.append((_PREFIX + name, *shapes))
            unused.discard(name)
            report.classes = len(converted[name]), len(network[name])
    report.loaded = [_PREFIX + name for name in fitting]
    report.unused = without_spare_counters([n for n in found.unused if n in unused])
    report.unused += list(others)
    if complete and report.initial:
        raise UserError(incomplete(report))
    model.network.load_state_dict(fitting, strict=False)
    return report


# ---- mixing ----


class SeededMixup:
    """timm's ``Mixup`` for groups of images in a batch, with a seed for each group.

    Within a group, the first image is mixed with the last, the second with the last but one, and
    so on, with the same parameters.
    """

    def __init__(self, mixup: Mixup):
        """
        Args:
            mixup (timm.data.Mixup): in its mode ``"batch"``; it also smooths the labels.
        """
        self.mixup = mixup

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, seeds: Sequence[MixSeed]
    ) -> torch.Tensor:
        """
        Args:
            images (Tensor): (N, C, H, W), normalized; mixed in place.
            labels (Tensor): (N,), class indices.
            seeds (sequence of MixSeed): of each image; a group is an even number of neighbors with
                the same seed.

        Returns:
            Tensor: (N, classes), smoothed targets.
        """
        targets, start = [], 0
        for seed, group in groupby(seeds):
            end = start + len(list(group))
            with _numpy_seeded(seed):
                targets.append(self.mixup(images[start:end], labels[start:end])[1])
            start = end
        return torch.cat(targets)


@contextmanager
def _numpy_seeded(seed: MixSeed) -> Iterator[None]:
    """Seed NumPy's global state, from which timm draws, and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(np.random.SeedSequence(seed).generate_state(4))
    try:
        yield
    finally:
        np.random.set_state(before)
