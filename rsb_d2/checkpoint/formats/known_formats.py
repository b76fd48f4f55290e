"""The formats of checkpoints, each recognised by its keys and converted by explicit rules.

A new format is a :class:`Format` in :data:`FORMATS`: a recogniser of a state dict and a converter
to the names of timm's model (``BACKBONE``) or of this project's detectors (``DETECTOR``).
"""

from dataclasses import dataclass
from typing import Callable

from ...errors import UserError
from ..reading import StateDict
from . import openmmlab_detectors, resnet_names

# What a converter returns: a backbone by the names of timm's classification model (conv1.weight,
# layer1.0.conv1.weight) ...
BACKBONE = "backbone"
# ... or a whole detector by the names of this project's (backbone.bottom_up.body.conv1.weight,
# backbone.fpn_lateral2.weight, proposal_generator.rpn_head.conv.weight).
DETECTOR = "detector"


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Args:
        name (str): what the log calls it.
        holds (str): ``BACKBONE`` or ``DETECTOR``.
        matches (callable): whether a state dict, ``{name: Tensor}``, is of this format.
        convert (callable): a state dict of this format to one that ``holds`` says; it raises
            :class:`UserError` where that cannot be done.
    """

    name: str
    holds: str
    matches: Callable[[StateDict], bool]
    convert: Callable[[StateDict], StateDict]


def recognise(weights: StateDict) -> Format:
    """The format of a state dict, told from its keys.

    Args:
        weights (dict[str, Tensor]): as :func:`read_checkpoint` returns it.

    Returns:
        Format: the last of :data:`FORMATS`, timm's, if no other matches: its names differ from
        architecture to architecture.
    """
    return next(f for f in FORMATS if f.matches(weights))


def _has_prefix(*prefixes: str) -> Callable[[StateDict], bool]:
    return lambda weights: any(name.startswith(prefixes) for name in weights)


def _all_have_prefix(*prefixes: str) -> Callable[[StateDict], bool]:
    return lambda weights: all(name.startswith(prefixes) for name in weights)


def _without_prefix(prefix: str) -> Callable[[StateDict], StateDict]:
    def convert(weights: StateDict) -> StateDict:
        return {n[len(prefix) :] if n.startswith(prefix) else n: t for n, t in weights.items()}

    return convert


def _unchanged(weights: StateDict) -> StateDict:
    return weights


def _is_openmmlab_classifier(weights: StateDict) -> bool:
    return _all_have_prefix("backbone.", "neck.", "head.")(weights) and _has_prefix("backbone.")(
        weights
    )


def _refuse_stock_detector(weights: StateDict) -> StateDict:
    raise UserError(
        "a detector on Detectron2's own ResNet: its names do not tell whether its stride is in "
        "the 1x1 or the 3x3 convolution, nor whether it takes RGB or BGR, and timm's backbone "
        "would compute something else without a word. Where it was trained with "
        "RESNETS.STRIDE_IN_1X1 False on RGB, extract its backbone with tools/convert_weights.py"
    )


def _refuse_caffe2(weights: StateDict) -> StateDict:
    raise UserError(
        "a Caffe2 model, as Detectron2's MSRA R-50.pkl: it takes BGR and strides in its 1x1 "
        "convolutions, so timm's backbone would compute something else with its weights. Write "
        "MODEL.WEIGHTS timm://resnet50.a1_in1k, or a file of timm, torchvision or OpenMMLab"
    )


PROJECT_BACKBONE = Format(
    "rsb_d2 backbone", BACKBONE, _all_have_prefix("body."), _without_prefix("body.")
)
PROJECT_CLASSIFIER = Format(
    "rsb_d2 image classifier", BACKBONE, _all_have_prefix("network."), _without_prefix("network.")
)
PROJECT_DETECTOR = Format(
    "rsb_d2 detector",
    DETECTOR,
    _has_prefix("backbone.bottom_up.body.", "backbone.body."),
    _unchanged,
)
STOCK_DETECTOR = Format(
    "Detectron2 detector",
    DETECTOR,
    _has_prefix("backbone.bottom_up.", "backbone.stem.conv1.", "backbone.res2.0."),
    _refuse_stock_detector,
)
DETECTRON2_RESNET = Format(
    "Detectron2 ResNet", BACKBONE, _has_prefix("res2.0."), resnet_names.to_timm
)
CAFFE2_RESNET = Format("Caffe2 ResNet", BACKBONE, _has_prefix("res2_0_branch2a_"), _refuse_caffe2)
OPENMMLAB_CLASSIFIER = Format(
    "OpenMMLab classification model",
    BACKBONE,
    _is_openmmlab_classifier,
    _without_prefix("backbone."),
)
OPENMMLAB_DETECTOR = Format(
    "OpenMMLab detector",
    DETECTOR,
    openmmlab_detectors.is_openmmlab_detector,
    openmmlab_detectors.from_openmmlab,
)
TIMM_CLASSIFIER = Format(
    "timm or torchvision classification model", BACKBONE, lambda weights: True, _unchanged
)

# The first that matches counts.
FORMATS = [
    PROJECT_BACKBONE,
    PROJECT_CLASSIFIER,
    PROJECT_DETECTOR,
    STOCK_DETECTOR,
    DETECTRON2_RESNET,
    CAFFE2_RESNET,
    OPENMMLAB_DETECTOR,
    OPENMMLAB_CLASSIFIER,
    TIMM_CLASSIFIER,
]
