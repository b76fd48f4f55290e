"""The config of a detector in Detectron2's own keys."""

from typing import Any, Dict, Tuple

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog

from ....data.class_names import ClassNames
from ....modeling.resnets.shape import PLAIN_RESNETS
from ....modeling.resnets.spec import backbone_spec
from ....registration import backbone_name
from ....solver.build import optimizer_name
from .reasons import BACKBONES

# Written whether or not they are Detectron2's defaults: without them the weights mean nothing.
_ALWAYS = ("VERSION", "INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.WEIGHTS")
_ALWAYS_BELOW = ("MODEL.RESNETS.", "MODEL.BACKBONE.")


def plain_config(cfg: CfgNode, weights: str, datasets: Tuple[Tuple[str, ...], ...]) -> CfgNode:
    """Turn a config into one of stock keys, for a ResNet that takes BGR.

    Args:
        cfg (CfgNode): of a detector that :func:`.reasons.check_is_plain` finds nothing against.
        weights (str): ``MODEL.WEIGHTS``.
        datasets (tuple): names of the data sets of ``DATASETS.TRAIN`` and of ``.TEST``.

    Returns:
        CfgNode: of ``get_cfg()``'s keys. What trains a model with AdamW is left at Detectron2's
        defaults, which are for SGD.
    """
    plain = get_cfg()
    _take_over(plain, cfg)
    defaults = get_cfg()
    if optimizer_name(cfg) != "SGD":
        plain.SOLVER = defaults.SOLVER
    plain.OUTPUT_DIR = defaults.OUTPUT_DIR
    plain.DATASETS.TRAIN, plain.DATASETS.TEST = datasets
    plain.INPUT.FORMAT = "BGR"
    model = plain.MODEL
    model.WEIGHTS = weights
    model.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    model.PIXEL_MEAN = list(cfg.MODEL.PIXEL_MEAN)[::-1]
    model.PIXEL_STD = list(cfg.MODEL.PIXEL_STD)[::-1]
    model.BACKBONE.NAME = BACKBONES[backbone_name(cfg)]
    spec = backbone_spec(cfg)
    shape = PLAIN_RESNETS[spec.name.partition(".")[0]]
    model.RESNETS = defaults.MODEL.RESNETS
    model.RESNETS.DEPTH = shape.depth
    model.RESNETS.NUM_GROUPS = shape.num_groups
    model.RESNETS.WIDTH_PER_GROUP = shape.width_per_group
    model.RESNETS.RES2_OUT_CHANNELS = shape.res2_out_channels
    model.RESNETS.OUT_FEATURES = [f for f in spec.out_features if f != "stem"]
    model.RESNETS.STRIDE_IN_1X1 = False  # timm's ResNet has its strides in the 3x3
    model.RESNETS.NORM = "FrozenBN"
    return plain


def dataset_names(
    cfg: CfgNode, classes: ClassNames, own_name: str
) -> Tuple[Tuple[str, ...], Tuple[str, ...]]:
    """The names under which Detectron2 and what builds on it look for the names of the classes.

    Args:
        cfg (CfgNode): its ``DATASETS.TRAIN`` and ``.TEST`` are kept, unless Detectron2 knows one of
            them by other classes.
        classes (ClassNames): of the model.
        own_name (str): for both, where there are none to keep.

    Returns:
        tuple[str], tuple[str]: for ``DATASETS.TRAIN`` and ``.TEST``; none is empty.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not names or any(_has_other_classes(name, classes) for name in names):
        return (own_name,), (own_name,)
    train = tuple(cfg.DATASETS.TRAIN) or tuple(cfg.DATASETS.TEST)
    return train, tuple(cfg.DATASETS.TEST) or train


def _has_other_classes(name: str, classes: ClassNames) -> bool:
    if name not in MetadataCatalog.list():
        return False
    names = MetadataCatalog.get(name).get("thing_classes")
    return names is not None and list(names) != list(classes.names)


def dump_differences(plain: CfgNode) -> str:
    """A config as YAML, without what is Detectron2's default anyway.

    So it is read by other versions of Detectron2, which have a few keys more or less.

    Args:
        plain (CfgNode): of ``get_cfg()``'s keys.

    Returns:
        str
    """
    tree = _differences(plain, get_cfg(), "")
    return yaml.safe_dump(tree, default_flow_style=None, sort_keys=True, allow_unicode=True)


def _differences(node: CfgNode, default: CfgNode, prefix: str) -> Dict[str, Any]:
    tree = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, CfgNode):
            below = _differences(value, default[key], f"{name}.")
            if below:
                tree[key] = below
        elif value != default[key] or name in _ALWAYS or name.startswith(_ALWAYS_BELOW):
            tree[key] = value
    return tree


def _take_over(plain: CfgNode, cfg: CfgNode) -> None:
    """Copy the values of the keys that both have."""
    for key, value in plain.items():
        if isinstance(value, CfgNode):
            _take_over(value, cfg[key])
        else:
            plain[key] = cfg[key]
