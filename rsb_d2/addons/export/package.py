"""From a detector to a folder for plain Detectron2, which has been run before it is there."""

import copy
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Tuple

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from torch import nn

from ...checkpoint.files import StateDict, save_weights
from ...checkpoint.formats import resnet_to_detectron2
from ...checkpoint.loading import COUNTER
from ...config.nodes import flat_items
from ...data.class_names import ClassNames
from ...errors import UserError
from ...files import whole_folder
from ...modeling import OpenMMLabCascadeROIHeads, OpenMMLabRetinaNet
from ...modeling.published import LastLevelP6P7WithoutReLU
from ...modeling.spec import (
    FPN,
    PLAIN_RESNETS,
    RETINANET_FPN,
    backbone_spec,
    is_timm_backbone,
)
from ...predictor import Predictor
from ...pretraining.classifier import ImageClassifier
from ...registration import backbone_name
from ...solver.build import optimizer_name
from .comparison import Difference, compare_outputs
from .export import check_compared, check_parent, score_threshold
from .files import on_cpu

CONFIG, WEIGHTS, CLASSES = "config.yaml", "model_final.pth", "classes.json"
_FILE_ENDINGS = (".onnx", ".pt2", ".ts", ".pth", ".xml")

# Written whether or not they are Detectron2's defaults: without them the weights mean nothing.
_ALWAYS = ("VERSION", "INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.WEIGHTS")
_ALWAYS_BELOW = ("MODEL.RESNETS.", "MODEL.BACKBONE.")

# Ours to Detectron2's, which put the same FPN on a ResNet.
BACKBONES = {
    FPN: "build_resnet_fpn_backbone",
    RETINANET_FPN: "build_retinanet_resnet_fpn_backbone",
}

# Of classes that Detectron2 lacks from its own.
_DIFFERENCES = {
    OpenMMLabRetinaNet: "clips boxes to the image before NMS, Detectron2's RetinaNet afterwards",
    OpenMMLabCascadeROIHeads: (
        "averages the logits of its stages, Detectron2's CascadeROIHeads their probabilities, and "
        "it has a mask head for each stage, Detectron2's one"
    ),
}
_OF_STOCK_MODELS = ("detectron2.", "torch.", "fvcore.")

# Of Detectron2's FrozenBatchNorm2d, which no key of its config changes.
FROZEN_EPS = 1e-5

_BOTTOM_UP = "backbone.bottom_up."
_BODY = f"{_BOTTOM_UP}body."
_FIRST_CONV = f"{_BODY}conv1.weight"


@dataclass
class Package:
    """What :func:`export_package` did.

    Args:
        folder (str): where the three files are.
        metadata (list[str]): lines of Python that give Detectron2 the names of the classes.
        num_images (int): on how many it was compared with the model.
        difference (Difference): from the model.
        num_rounded (int): images on which the two differ by more than they may, but only by the
            rounding of float32; ``difference`` is without it there.
    """

    folder: str
    metadata: List[str]
    num_images: int
    difference: Difference
    num_rounded: int

    @property
    def usage(self) -> List[str]:
        """list[str]: lines of Python that run the package without this project."""
        return [
            "from detectron2.config import get_cfg",
            "from detectron2.engine import DefaultPredictor",
            *self.metadata,
            "cfg = get_cfg()",
            f"cfg.merge_from_file({os.path.join(self.folder, CONFIG)!r})",
            f"cfg.MODEL.WEIGHTS = {os.path.join(self.folder, WEIGHTS)!r}",
            "predictor = DefaultPredictor(cfg)  # takes BGR, as of cv2.imread",
        ]


def export_package(
    cfg: CfgNode,
    model: nn.Module,
    classes: ClassNames,
    folder: str,
    images: List[np.ndarray],
) -> Package:
    """Write a detector for Detectron2, and check that Detectron2 detects the same.

    The folder gets ``config.yaml`` with only Detectron2's own keys, ``model_final.pth`` for its
    ResNet, FPN and heads, taking BGR, and ``classes.json``.

    Args:
        cfg (CfgNode): of the model.
        model (nn.Module): in evaluation mode; one on a GPU is copied to the CPU.
        classes (ClassNames): of the model.
        folder (str): where nothing is yet, or an empty folder.
        images (list[ndarray]): to compare on: uint8 (H, W, 3), channels as in ``INPUT.FORMAT``.

    Returns:
        Package

    Raises:
        UserError: if Detectron2 lacks a part of the model, if the folder cannot be
            written, if the two differ, or if nothing is detected, so that nothing can be
            compared. There is no folder then.
    """
    model = on_cpu(model)
    check_is_plain(cfg, model)
    check_folder(folder)
    datasets = dataset_names(cfg, classes, f"{os.path.basename(os.path.abspath(folder))}_classes")
    metadata = _metadata_lines(datasets, classes)
    weights = os.path.join(os.path.abspath(folder), WEIGHTS)
    plain = plain_config(cfg, weights, datasets)
    with whole_folder(folder) as temporary:
        # With the names, for this project's own programs.
        names = {"class_names": list(classes.names), "class_ids": list(classes.ids)}
        content = {"thing_classes": names["class_names"], "category_ids": names["class_ids"]}
        content = json.dumps({**content, "metadata": metadata}, indent=1, ensure_ascii=False)
        for name, text in ((CONFIG, dump_differences(plain)), (CLASSES, f"{content}\n")):
            Path(temporary, name).write_text(text, encoding="utf-8")
        save_weights(os.path.join(temporary, WEIGHTS), plain_weights(model), **names)
        try:
            difference, num_rounded = _compare(temporary, cfg, model, classes, images)
        except UserError as e:
            raise UserError(f"{folder} was not written: {e}") from None
    return Package(folder, metadata, len(images), difference, num_rounded)


def check_folder(folder: str) -> None:
    """Raise a :class:`UserError` unless ``folder`` is one that a package can be written to."""
    path = os.path.abspath(folder)
    check_parent(path)
    if path.endswith(_FILE_ENDINGS):
        raise UserError(f"--output: {folder} is a file's name; --format detectron2 makes a folder")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UserError(f"--output: {folder} is a file: name a folder that is not there yet")
    if os.path.isdir(path) and os.listdir(path):
        raise UserError(f"--output: {folder} is not empty: name a folder that is not there yet")


def _metadata_lines(datasets: Tuple[Tuple[str, ...], ...], classes: ClassNames) -> List[str]:
    names = dict.fromkeys(name for group in datasets for name in group)
    lines = [
        f"MetadataCatalog.get({name!r}).thing_classes = {list(classes.names)!r}" for name in names
    ]
    return ["from detectron2.data import MetadataCatalog", *lines]


def _compare(
    temporary: str,
    cfg: CfgNode,
    model: nn.Module,
    classes: ClassNames,
    images: List[np.ndarray],
) -> Tuple[Difference, int]:
    """Run the package as its users will, but on the CPU, as the model.

    The two sum over the channels of the image in another order, which in float32 rounds
    differently, in the seventh digit. Fifty layers later that is the sixth or fifth digit of a
    score, and sometimes the other one of two boxes that suppress each other. Where they differ,
    both are run with their backbones in float64.

    Returns:
        Difference, int: where float32 tells the two apart, and nothing else does, from the model
        without the rounding; the number of these images.
    """
    plain = get_cfg()
    plain.merge_from_file(os.path.join(temporary, CONFIG), allow_unsafe=False)
    plain.MODEL.WEIGHTS = os.path.join(temporary, WEIGHTS)
    plain.MODEL.DEVICE = "cpu"
    predictor = DefaultPredictor(plain)
    content = torch.load(plain.MODEL.WEIGHTS, weights_only=True)
    _check_names(predictor.model, content["model"])
    limits = score_threshold(cfg), cfg.TEST.DETECTIONS_PER_IMAGE
    models = model, predictor.model

    def compare_on(image: np.ndarray, mine: nn.Module, plain_model: nn.Module) -> Difference:
        predictor.model = plain_model
        found = predictor(np.ascontiguousarray(image[:, :, ::-1]))
        with torch.no_grad():
            expected = mine([Predictor(cfg, mine, classes).prepare(image)])[0]
        return compare_outputs(expected, found, *limits)

    total, num_rounded = Difference(), 0
    for image in images:
        try:
            total.add(compare_on(image, *models))
        except UserError as difference:
            try:
                total.add(compare_on(image, *map(_with_float64_backbone, models)))
                num_rounded += 1
            except UserError:
                height, width = image.shape[:2]
                raise UserError(
                    f"it differs from the model on an image of {width} x {height}: {difference}"
                ) from None
    check_compared(total.detections, images, limits[0])
    return total, num_rounded


def _with_float64_backbone(model: nn.Module) -> nn.Module:
    """A copy of a model, whose features are computed in float64 and returned in float32."""
    model = copy.deepcopy(model)
    model.backbone.double().register_forward_pre_hook(lambda _, images: (images[0].double(),))
    model.backbone.register_forward_hook(
        lambda _, images, features: {name: feature.float() for name, feature in features.items()}
    )
    return model


def _check_names(model: nn.Module, weights: StateDict) -> None:
    """Detectron2 itself only warns of weights that do not fit."""
    names = model.state_dict().keys()
    for name in names - weights.keys():
        raise UserError(f"Detectron2's model has {name}, and the weights have no such")
    for name in weights.keys() - names:
        raise UserError(f"the weights have {name}, and Detectron2's model has no such")


# ---- models that can be exported ----


def check_is_plain(cfg: CfgNode, model: nn.Module) -> None:
    """Check that stock code of Detectron2 computes the same as a detector.

    Args:
        cfg (CfgNode): of the model.
        model (nn.Module): the detector.

    Raises:
        UserError: with the first reason why it does not.
    """
    for reason in _reasons(cfg, model):
        raise UserError(f"--format detectron2: {reason}")


def _reasons(cfg: CfgNode, model: nn.Module) -> Iterator[str]:
    name = cfg.MODEL.BACKBONE.NAME
    if type(model) is ImageClassifier:
        yield "Detectron2 has no image classifiers; tools/convert_weights.py writes its backbone"
    if not is_timm_backbone(cfg):
        yield (
            f"MODEL.BACKBONE.NAME {name} is not of this project: its config.yaml and weights are "
            "for Detectron2 as they are"
        )
    timm_name = backbone_spec(cfg).name
    if timm_name.partition(".")[0] not in PLAIN_RESNETS:
        yield (
            f"Detectron2 has no backbone like timm's {timm_name}, only {', '.join(PLAIN_RESNETS)}"
        )
    if backbone_name(cfg) not in BACKBONES:
        yield (
            f"MODEL.BACKBONE.NAME {name} pads images to a multiple of its stride, and Detectron2's "
            f"ResNet without an FPN does not; {' and '.join(BACKBONES)} can be exported"
        )
    yield from _reasons_of_pyramid(cfg, model)
    yield from _foreign_parts(model)


def _reasons_of_pyramid(cfg: CfgNode, model: nn.Module) -> Iterator[str]:
    levels = list(cfg.MODEL.FPN.IN_FEATURES)
    if "stem" in levels:
        yield (
            "MODEL.FPN.IN_FEATURES has stem, which is at stride 2 here and in Detectron2's ResNet "
            "at stride 4"
        )
    top_block = getattr(model.backbone, "top_block", None)
    if isinstance(top_block, LastLevelP6P7WithoutReLU):
        yield (
            "MODEL.RETINANET.P7_RELU is False, as in the published RetinaNet: Detectron2's has a "
            "ReLU between P6 and P7"
        )
    if cfg.MODEL.RETINANET.P6_IN_FEATURE not in ("", levels[-1]):
        yield "MODEL.RETINANET.P6_IN_FEATURE is p5: Detectron2 makes P6 of res5"
    if backbone_name(cfg) == RETINANET_FPN and levels[-1] != "res5":
        yield f"Detectron2 makes P6 and P7 of res5, and MODEL.FPN.IN_FEATURES ends in {levels[-1]}"


def _foreign_parts(model: nn.Module) -> Iterator[str]:
    """Modules, besides the backbone, whose code a process with only Detectron2 does not have."""
    for name, module in model.named_modules():
        is_stock = f"{type(module).__module__}.".startswith(_OF_STOCK_MODELS)
        if not is_stock and not name.startswith("backbone.bottom_up"):
            what = f"{type(module).__name__} ({name or 'the model'})"
            yield f"{what} {_DIFFERENCES.get(type(module), 'is no part of Detectron2')}"


# ---- config and weights ----


def plain_config(cfg: CfgNode, weights: str, datasets: Tuple[Tuple[str, ...], ...]) -> CfgNode:
    """Turn a config into one of stock keys, for a ResNet that takes BGR.

    Args:
        cfg (CfgNode): of a detector that :func:`check_is_plain` accepts.
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
    """The names under which Detectron2 and its users look for the names of the classes.

    Args:
        cfg (CfgNode): its ``DATASETS.TRAIN`` and ``.TEST`` are kept, unless Detectron2 knows one of
            them by other classes.
        classes (ClassNames): of the model.
        own_name (str): for both, where there are none to keep.

    Returns:
        tuple[str], tuple[str]: for ``DATASETS.TRAIN`` and ``.TEST``; none is empty.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    known = [MetadataCatalog.get(name) for name in names if name in MetadataCatalog.list()]
    others = [metadata.get("thing_classes", classes.names) for metadata in known]
    if not names or any(list(other) != list(classes.names) for other in others):
        return (own_name,), (own_name,)
    train = tuple(cfg.DATASETS.TRAIN) or tuple(cfg.DATASETS.TEST)
    return train, tuple(cfg.DATASETS.TEST) or train


def dump_differences(plain: CfgNode) -> str:
    """A config as YAML, without the values that are Detectron2's defaults.

    So it is read by other versions of Detectron2, which have a few keys more or less.

    Args:
        plain (CfgNode): of ``get_cfg()``'s keys.

    Returns:
        str
    """
    tree, defaults = {}, dict(flat_items(get_cfg()))
    for key, value in flat_items(plain):
        if value != defaults[key] or key in _ALWAYS or key.startswith(_ALWAYS_BELOW):
            *nodes, name = key.split(".")
            node = tree
            for each in nodes:
                node = node.setdefault(each, {})
            node[name] = value
    return yaml.safe_dump(tree, default_flow_style=None, sort_keys=True, allow_unicode=True)


def _take_over(plain: CfgNode, cfg: CfgNode) -> None:
    """Copy the values of the keys that both have."""
    for key, value in plain.items():
        if isinstance(value, CfgNode):
            _take_over(value, cfg[key])
        else:
            plain[key] = cfg[key]


def plain_weights(model: nn.Module) -> StateDict:
    """Weights for ``build_resnet_fpn_backbone`` and stock heads.

    Args:
        model (nn.Module): a detector with an FPN on a plain ResNet of timm's that takes RGB.

    Returns:
        dict[str, Tensor]: of the same detector with ``RESNETS.NORM`` FrozenBN, which takes BGR.
    """
    weights = dict(model.state_dict())
    weights[_FIRST_CONV] = weights[_FIRST_CONV].flip(1)  # of its input channels
    for name, module in model.named_modules():
        if name.startswith(_BODY) and hasattr(module, "running_var"):
            variance = weights[f"{name}.running_var"]
            weights[f"{name}.running_var"] = variance + (module.eps - FROZEN_EPS)
    body = {n[len(_BODY) :]: t for n, t in weights.items() if n.startswith(_BODY)}
    resnet = resnet_to_detectron2(body)
    # FrozenBatchNorm2d counts no batches.
    plain = {_BOTTOM_UP + n: t for n, t in resnet.items() if not n.endswith(COUNTER)}
    plain.update((n, t) for n, t in weights.items() if not n.startswith(_BODY))
    return {n: _contiguous(t) for n, t in plain.items()}


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous()  # also of a model that is channels-last
