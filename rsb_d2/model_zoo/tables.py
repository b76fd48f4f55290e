"""What is in the zoo: the configs with their published results, and timm's RSB weights."""

import builtins
import csv
from functools import cache
from pathlib import Path
from typing import Dict, NamedTuple

import timm
import torch
from detectron2.config import CfgNode
from tabulate import tabulate
from timm.models import list_pretrained

from ..checkpoint.sources import URLS, is_rsb
from .model_zoo import config_names


class Table(builtins.list):
    """A list of named tuples that prints as a table; what is not known is blank."""

    def __str__(self) -> str:
        if not self:
            return ""
        headers = self[0]._fields
        return tabulate(self, headers, tablefmt="github", floatfmt=".1f", missingval="")


class Config(NamedTuple):
    """A config of the zoo; the figures are published ones, ``None`` where there are none.

    Args:
        name (str): of the config, without ``.yaml``.
        box_ap (float or None): on COCO val2017.
        mask_ap (float or None): on COCO val2017.
        train_memory_gb (float or None): per GPU with 2 images.
        weights (str or None): the published detector, for ``MODEL.WEIGHTS``.
    """

    name: str
    box_ap: float | None = None
    mask_ap: float | None = None
    train_memory_gb: float | None = None
    weights: str | None = None


class RsbWeights(NamedTuple):
    """Weights of timm that were trained with a recipe of "ResNet strikes back".

    Args:
        weights (str): for ``MODEL.WEIGHTS``.
        architecture (str): for ``MODEL.TIMM.NAME``.
        recipe (str): as timm's tag says it: ``"a1"``.
        top1 (float or None): ImageNet accuracy in percent, where timm has its table of results.
        params_m (float): parameters of the whole classification model, in millions.
    """

    weights: str
    architecture: str
    recipe: str
    top1: float | None
    params_m: float


# COCO val2017: box AP, mask AP, training memory. Sources: metafile.yml in MMDetection's folders of
# configs (resnet_strikes_back, faster_rcnn, ...), and the meta data of torchvision's weights
# (FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta, ...), which do not include the memory.
_PUBLISHED = {
    "frcnn_rsb_1x": (40.8, None, 3.9),
    "mask_rcnn_rsb_1x": (41.2, 38.2, 4.5),
    "cascade_mask_rcnn_rsb_1x": (44.8, 39.9, 6.2),
    "retinanet_rsb_1x": (39.0, None, 3.8),
    "frcnn_tv2_1x": (40.2, None, 4.0),
    "frcnn_tv_3x": (40.3, None, 3.9),
    "mask_rcnn_tv_3x": (40.9, 37.1, 4.1),
    "cascade_mask_rcnn_tv_3x": (44.3, 38.5, 5.9),
    "retinanet_tv_3x": (39.5, None, None),
    "frcnn_tv_resnet101_3x": (41.8, None, 5.8),
    "frcnn_torchvision_v2": (46.7, None, None),
    "mask_rcnn_torchvision_v2": (47.4, 41.8, None),
    "retinanet_torchvision_v2": (41.5, None, None),
    "frcnn_torchvision": (37.0, None, None),
    "mask_rcnn_torchvision": (37.9, 34.6, None),
    "keypoint_rcnn_torchvision": (54.6, None, None),
    "retinanet_torchvision": (36.4, None, None),
}


def published_memory(cfg: CfgNode) -> float | None:
    """Return the published training memory of a config's model, in GB for 2 images on a GPU.

    Args:
        cfg (CfgNode): of a detector on a ResNet-50.

    Returns:
        float or None: None where nothing comparable is published.
    """
    if cfg.MODEL.TIMM.NAME.partition(".")[0] != "resnet50" or cfg.INPUT.MIN_SIZE_TRAIN[-1] != 800:
        return None
    kinds = {"OpenMMLabRetinaNet": "retinanet_rsb_1x", "RetinaNet": "retinanet_rsb_1x"}
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and not cfg.MODEL.KEYPOINT_ON:
        heads = {
            ("StandardROIHeads", False): "frcnn_rsb_1x",
            ("StandardROIHeads", True): "mask_rcnn_rsb_1x",
            ("OpenMMLabCascadeROIHeads", True): "cascade_mask_rcnn_rsb_1x",
        }
        name = heads.get((cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.MASK_ON))
    else:
        name = kinds.get(cfg.MODEL.META_ARCHITECTURE)
    return _PUBLISHED[name][2] if name else None


def list() -> Table:
    """The configs of the zoo with their published results.

    Returns:
        Table: of :class:`Config`, those with published results first.
    """
    configs = []
    for name in (*_PUBLISHED, *(n for n in config_names() if n not in _PUBLISHED)):
        weights = f"zoo://{name}" if name in URLS else None
        configs.append(Config(name, *_PUBLISHED.get(name, (None, None, None)), weights))
    return Table(configs)


def rsb_weights() -> Table:
    """timm's weights that its own ``paper_ids`` count among those of "ResNet strikes back".

    Returns:
        Table: of :class:`RsbWeights`, in timm's order.
    """
    top1 = _top1_of_timm()
    rows = []
    for name in list_pretrained():
        if not is_rsb(name):
            continue
        architecture, _, tag = name.partition(".")
        rows.append(
            RsbWeights(
                f"timm://{name}",
                architecture,
                tag.removesuffix("_in1k"),
                top1.get(name),
                round(_num_parameters(architecture) / 1e6, 1),
            )
        )
    return Table(rows)


@cache
def _num_parameters(architecture: str) -> int:
    with torch.device("meta"):
        model = timm.create_model(architecture)
    return sum(p.numel() for p in model.parameters())


def _top1_of_timm() -> Dict[str, float]:
    """timm's own results by the names of the weights; they are in its repository, not its wheel."""
    path = Path(timm.__file__).parents[1] / "results" / "results-imagenet.csv"
    if not path.is_file():
        return {}
    with path.open(newline="") as f:
        return {row["model"]: float(row["top1"]) for row in csv.DictReader(f)}
