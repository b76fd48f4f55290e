"""Converting weights: detectors to this project's names, backbones to Detectron2's or timm's."""

import os
from typing import Dict, List, NamedTuple

import timm
import torch

from ..errors import UserError, first
from ..modeling.spec import PLAIN_RESNETS
from .files import StateDict, check_ending, read_checkpoint, save_weights
from .formats import (
    DETECTOR,
    PROJECT_CLASSIFIER,
    STOCK_DETECTOR,
    Format,
    recognize,
    resnet_to_detectron2,
    resnet_to_timm,
)
from .loading import (
    COUNTER,
    architecture,
    classifier_names,
    complete_model,
    foreign_names,
    model_name,
    split_detector,
    state_dict_of,
)
from .sources import TIMM, check_architecture, locate

TARGETS = ("rsb_d2", "detectron2", "timm")

_PLAIN_CHILDREN = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
_HAS = f"whose ResNet can be timm's {', '.join(PLAIN_RESNETS)}"


class Conversion(NamedTuple):
    """A detector's or a backbone's weights in a new form.

    Args:
        weights (dict[str, Tensor]): by the names of the target.
        timm_name (str): timm's name of the architecture; of a detector, as it was given.
        format_name (str): of the source.
        dropped (list[str]): the tensors of the file that were left out.
        num_classes (int): of the classifier that is in ``weights``; 0 if there is none.
    """

    weights: StateDict
    timm_name: str
    format_name: str
    dropped: List[str]
    num_classes: int = 0


def convert_file(source: str, output: str, target: str, timm_name: str = "") -> Conversion:
    """Convert a file of any known format; the output is written completely or not at all.

    Args:
        source (str): a path as in ``MODEL.WEIGHTS``.
        output (str): a path that ends in ``.pth`` or ``.safetensors``.
        target (str): ``"rsb_d2"``: a complete detector by this project's names;
            ``"detectron2"``: for ``build_resnet_fpn_backbone``; ``"timm"``: for
            ``timm.create_model(timm_name, num_classes=0, checkpoint_path=output)``, or with its
            number of classes for an image classifier of this project.
        timm_name (str): timm's name of the architecture; it can be left out for a plain ResNet.

    Returns:
        Conversion: of the written file.

    Raises:
        UserError: if the file cannot be read, is not of the architecture, cannot be converted or
            the output cannot be written.
    """
    check_ending(output)
    if source.startswith(TIMM):
        source_name = source[len(TIMM) :]
        check_architecture(source, source_name)  # that there is such a name
        timm_name = timm_name or source_name
    if timm_name:
        _check_name(timm_name, target)
    path = locate(source)
    if os.path.exists(output) and os.path.samefile(path, output):
        raise UserError(f"{output} is the input: name another file to write")
    weights = state_dict_of(read_checkpoint(path))
    try:
        conversion = convert(weights, target, timm_name)
    except UserError as e:
        raise UserError(f"{source}: {e}") from e
    # Without "matching_heuristics" Detectron2 does not look for the backbone in its model.
    entries = {"__author__": "timm", "matching_heuristics": True} if target == "detectron2" else {}
    save_weights(output, conversion.weights, **entries)
    return conversion


def convert(weights: StateDict, target: str, timm_name: str = "") -> Conversion:
    """Convert a state dict of any of the known formats.

    Args:
        weights (dict[str, Tensor]): as :func:`read_checkpoint` returns it.
        target, timm_name: as for :func:`convert_file`.

    Returns:
        Conversion: of the detector, of the backbone only, or for ``"timm"`` of an image classifier
        of this project with its last layer; the tensors of ``weights``, renamed and, for a
        RetinaNet of OpenMMLab, in another order of anchors.

    Raises:
        UserError: if the weights are not of the architecture, or if it is unknown or has no
            counterpart in the target.
    """
    format = recognize(weights)
    if target == "rsb_d2":
        if format.holds != DETECTOR:
            raise UserError(
                f"{format.name}: it holds no detector; a config takes a backbone's weights as "
                "they are, in MODEL.WEIGHTS"
            )
        return Conversion(format.convert(weights), timm_name, format.name, [])
    backbone = _backbone(weights, format)
    name = _check_name(timm_name, target) if timm_name else _identify(backbone, target)
    converted = _of_model(backbone, name)
    num_classes = 0
    if target == "timm" and format is PROJECT_CLASSIFIER:
        last = tuple(f"{module}." for module in classifier_names(name))
        kept = {n: t for n, t in backbone.items() if n.startswith(last)}
        num_classes = len(next(iter(kept.values()), ()))
        converted.update(kept)
    dropped = [n for n in backbone if n not in converted]
    if target == "detectron2":
        converted = resnet_to_detectron2(converted)
    return Conversion(converted, name, format.name, dropped, num_classes)


def _backbone(weights: StateDict, format: Format) -> StateDict:
    """The backbone, perhaps with a classifier, by the names of timm or of its feature net."""
    if format is STOCK_DETECTOR:
        return resnet_to_timm(_stock_backbone(weights))
    converted = format.convert(weights)
    return split_detector(converted)[0] if format.holds == DETECTOR else converted


def _stock_backbone(weights: StateDict) -> StateDict:
    """Detectron2's ResNet, of a detector with an FPN, of DC5, or of C4 with res5 in its heads."""
    found = {}
    for name, tensor in weights.items():
        for prefix in ("backbone.bottom_up.", "backbone.", "roi_heads."):
            rest = name[len(prefix) :]
            if name.startswith(prefix) and rest.startswith(("stem.", "res")):
                found[rest] = tensor
                break
    return found


def _check_name(timm_name: str, target: str) -> str:
    name = architecture(timm_name)
    if not timm.is_model(name):
        raise UserError(f"timm has no model {timm_name!r}; see timm.list_models()")
    if target == "detectron2" and name not in PLAIN_RESNETS:
        raise UserError(f"timm's {name} has no counterpart in Detectron2, {_HAS}")
    return name


def _identify(weights: StateDict, target: str) -> str:
    """timm's name of the plain ResNet whose names and shapes are in some weights."""
    shapes = {n: t.shape for n, t in weights.items() if n.partition(".")[0] in _PLAIN_CHILDREN}
    shapes = _without_counters(shapes)
    for name in PLAIN_RESNETS:
        if shapes == _without_counters(_shapes(name)):
            return name
    if target == "detectron2":
        raise UserError(f"not a backbone that Detectron2 has, {_HAS}")
    raise UserError(
        "the names and shapes do not identify the architecture: it is not a plain ResNet or "
        "does not have all of its stages: give timm's name of it with --name"
    )


def _of_model(weights: StateDict, name: str) -> StateDict:
    """All that a model of timm has before its classifier, by its names."""
    shapes = _shapes(name)
    converted, other_shape = {}, []
    for source, tensor in weights.items():
        known = model_name(source, shapes)
        if known is None:
            continue
        converted[known] = tensor
        if tensor.shape != shapes[known]:
            other_shape.append(
                f"{source} is {tuple(tensor.shape)}, in timm's {name} {tuple(shapes[known])}"
            )
    missing = [n for n in _without_counters(shapes) if n not in converted]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(shapes)} tensors of timm's {name} are not in it: "
            + first(missing, 3)
        )
    if other_shape:
        raise UserError(f"{len(other_shape)} tensors have another shape: {other_shape[0]}")
    foreign = foreign_names([n for n in weights if n not in converted], converted, name)
    if foreign:
        raise UserError(f"{len(foreign)} tensors are not of timm's {name}: {first(foreign, 3)}")
    return converted


def _shapes(name: str) -> Dict[str, torch.Size]:
    """Names and shapes of timm's model without its classifier."""
    classifiers = tuple(f"{c}." for c in classifier_names(name))
    tensors = complete_model(name).state_dict()
    return {n: t.shape for n, t in tensors.items() if not n.startswith(classifiers)}


def _without_counters(shapes: Dict[str, torch.Size]) -> Dict[str, torch.Size]:
    return {n: s for n, s in shapes.items() if not n.endswith(COUNTER)}
