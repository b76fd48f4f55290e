"""The image classifier: the whole of a timm model as a Detectron2 meta architecture."""

from typing import Any, Dict, List, Sequence

import timm
import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from ..checkpoint.loading import LoadReport
from ..errors import UserError
from ..modeling.build import check_pixel_format
from ..modeling.norm import BATCH_NORM_TYPES, NORM_POLICIES, apply_norm_policy
from ..modeling.resnets.spec import classifier_spec
from ..modeling.timm_backbone import check_model_name
from ..registration import register
from .classifier_weights import load_classifier
from .mixing import SeededMixup

LOSSES = ("bce", "ce")


@register(META_ARCH_REGISTRY, waits=True)  # a name for anybody's
class ImageClassifier(nn.Module):
    """Any timm model with its classifier, trained as timm's own ``train.py`` trains it.

    In training it returns the loss of a batch, whose images it mixes if they say by which seed; in
    evaluation the scores. The network is in ``network``, by timm's own names.
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
            norm_eval (bool): normalise with the running statistics in training, too.
            loss (str): ``"bce"``, binary cross-entropy, or ``"ce"``, cross-entropy.
            label_smoothing (float): part of each label that all classes share, from 0 to below 1.
            target_thresh (float or None): of ``"bce"``: a share above it counts as 1, any other as
                0. ``None`` leaves shares as they are.
            smooth_after_thresh (bool): smooth those 0 and 1, not what they are made from.
            mixup_alpha, cutmix_alpha (float): of Mixup and CutMix; 0 is off.
            mix_prob (float): how likely images are mixed.
            switch_prob (float): how likely they are then mixed by CutMix, if both are on.

        Raises:
            UserError: if timm has no such model or cannot build it with these values.
        """
        super().__init__()
        if norm not in NORM_POLICIES:
            raise UserError(f"MODEL.TIMM.NORM: {norm!r} is none of {', '.join(NORM_POLICIES)}")
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
        # Of shares of the classes, and of one class for each image.
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
        """torch.device: that the model is on."""
        return self.pixel_mean.device

    def forward(self, batch: List[Dict[str, Any]]) -> Dict[str, torch.Tensor] | torch.Tensor:
        """
        Args:
            batch (list[dict]): of each image ``image``, (3, H, W) of uint8, RGB, all of one size;
                in training ``label``, a class index, and where it is mixed ``mix_seed``, see
                :class:`rsb_d2.pretraining.mixing.SeededMixup`.

        Returns:
            dict[str, Tensor] or Tensor: in training ``loss_cls``; in evaluation the scores, of
            shape (N, classes): the network's outputs, before any sigmoid or softmax.
        """
        images = self.normalise(batch)
        if not self.training:
            return self.network(images)
        images, targets = self.mix(images, batch)
        # In float32, of which a sum of a thousand classes has need.
        return {"loss_cls": self._loss(self.network(images).float(), targets)}

    def normalise(self, batch: List[Dict[str, Any]]) -> torch.Tensor:
        """The images of a batch as the network takes them, but for mixing: (N, 3, H, W)."""
        images = torch.stack([x["image"] for x in batch]).to(self.device, non_blocking=True)
        return images.to(self.pixel_mean.dtype).sub_(self.pixel_mean).div_(self.pixel_std)

    def mix(self, images: torch.Tensor, batch: List[Dict[str, Any]]) -> tuple:
        """Mix the images of a batch that are to be mixed.

        Args:
            images (Tensor): of :meth:`normalise`; may be changed.
            batch (list[dict]): as of :meth:`forward`.

        Returns:
            Tensor, Tensor: the images, and (N, classes) the shares of the classes where they are
            mixed, else (N,) the labels.
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
        """Load weights of any known format; see :func:`.classifier_weights.load_classifier`."""
        return load_classifier(self, *arguments)

    def train(self, mode: bool = True) -> "ImageClassifier":
        """As ``nn.Module.train``; with ``norm_eval`` batch norm stays in evaluation mode."""
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
    # What is 0 is not passed on: not every model of timm has it.
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
