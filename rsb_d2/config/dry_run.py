"""A dry run of the model of a config, before anything is written.

Detectron2 checks many keys by assertions while it builds a model, and others only in the first
iteration. So the model is built here with zeros for weights (0.1 s for Faster R-CNN with
ResNet-50, where random weights take 0.5 s), and a small batch of black images passes through it
(0.4 s), in training and in evaluation mode. An exception is reported with the keys that the failing
code has read.
"""

import inspect
import sys
import traceback
import warnings
from collections import defaultdict
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Callable, Dict, Iterator, List, Set

import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone, build_model
from detectron2.structures import (
    BitMasks,
    Boxes,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
)
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..data.mapper import build_augmentation
from ..data.random_state import random_state_kept
from ..errors import UserError, printable
from ..modeling.norm import BATCH_NORM_TYPES
from ..modeling.spec import check_features
from ..solver import build_optimizer
from .defaults import default_config
from .nodes import get_value

# Modules whose errors are about the config. Other code may need more than the batch contains, and
# its errors are for its author.
_KNOWN = {
    *("rsb_d2", "detectron2", "fvcore", "yacs", "timm", "torch", "torchvision", "numpy"),
    *sys.stdlib_module_names,
}
_OF_BACKBONE = ("MODEL.BACKBONE.", "MODEL.FPN.", "MODEL.RESNETS.", "MODEL.TIMM.")
_PROJECTS = "detectron2.projects"
_SIZES = ((48, 64), (64, 40))
_MOST_PROPOSALS = 8
_MOST_KEYS = 6


def dry_run(
    cfg: CfgNode, eval_only: bool, build_and_run: Callable[[CfgNode, bool], nn.Module]
) -> None:
    """Build the model and run it, and build its optimizer and augmentation; then discard them.

    An error names the keys that are likely at fault.

    Args:
        cfg (CfgNode): with values in their ranges; not changed.
        eval_only (bool): leave out the parts that only training needs.
        build_and_run (callable): as :func:`build_and_run`, for the config's kind of training.
    """
    reads = _Reads()
    with warnings.catch_warnings(), random_state_kept(with_gpu=False), _explained(reads, cfg):
        warnings.simplefilter("ignore")
        recorded = _recorded(_made_small(cfg), reads)
        model = build_and_run(recorded, eval_only)
        if not eval_only:
            build_optimizer(recorded, model)


def build_and_run(cfg: CfgNode, eval_only: bool) -> nn.Module:
    """Build a detector with zeros for weights, and run it on black images with invented objects."""
    with _ZeroInit():
        model = build_model(cfg)
    if hasattr(model, "backbone"):
        check_features(cfg, list(model.backbone.output_shape()))
    build_augmentation(cfg, is_train=not eval_only)
    _run(model, cfg, eval_only)
    return model


def _made_small(cfg: CfgNode) -> CfgNode:
    """A copy for the CPU, with few proposals, as the box head takes most of the time."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.VIS_PERIOD = 0
    cfg.MODEL.DEVICE = "cpu"
    for key in ("POST_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TEST"):
        cfg.MODEL.RPN[key] = min(cfg.MODEL.RPN[key], _MOST_PROPOSALS)
    return cfg


class _ZeroInit(TorchDispatchMode):
    """Zeros instead of random numbers, whose generation takes most of the time of building."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def _run(model: nn.Module, cfg: CfgNode, eval_only: bool) -> None:
    batch = [_black_image(cfg, height, width) for height, width in _SIZES]
    with torch.no_grad():
        for training in (False,) if eval_only else (True, False):
            model.train(training)
            for module in model.modules():
                if isinstance(module, BATCH_NORM_TYPES):
                    module.eval()  # SyncBN does not train on a CPU
            with EventStorage(0):
                model(batch)


def _black_image(cfg: CfgNode, height: int, width: int) -> Dict[str, Any]:
    """A black image with two objects of each kind of annotation, as a dataset mapper returns it."""
    size, model = (height, width), cfg.MODEL
    corners = torch.tensor([[4.0, 8.0, 20.0, 24.0], [8.0, 12.0, 40.0, 44.0]])
    classes = torch.zeros(len(corners), dtype=torch.long)
    boxes = Boxes(corners)
    if "Rotated" in model.ANCHOR_GENERATOR.NAME:
        boxes = RotatedBoxes(torch.tensor([[12.0, 16.0, 16.0, 16.0, 0.0], [24, 28, 32, 32, 30]]))
    truth = Instances(size, gt_boxes=boxes, gt_classes=classes)
    if model.MASK_ON:
        squares = [[[x, y, a, y, a, b, x, b]] for x, y, a, b in corners.tolist()]
        truth.gt_masks = PolygonMasks(squares)
        if cfg.INPUT.MASK_FORMAT == "bitmask":
            truth.gt_masks = BitMasks.from_polygon_masks(truth.gt_masks, height, width)
    if model.KEYPOINT_ON:
        points = corners[:, None, :2].expand(-1, model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, -1) + 8
        truth.gt_keypoints = Keypoints(torch.cat([points, torch.full_like(points[..., :1], 2)], 2))
    proposals = Instances(size, proposal_boxes=boxes, objectness_logits=torch.ones(len(boxes)))
    return {
        "image": torch.zeros(len(model.PIXEL_MEAN), height, width, dtype=torch.uint8),
        "height": height,
        "width": width,
        "instances": truth,
        "sem_seg": torch.zeros(size, dtype=torch.long),
        "proposals": proposals,
    }


# ---- the keys that an error is about ----


class _Reads:
    """The keys of a config by the function that read them; copies of the config share it."""

    def __init__(self):
        self.by_code: Dict[CodeType, Set[str]] = defaultdict(set)

    def __deepcopy__(self, memo):
        return self


class _RecordedConfig(CfgNode):
    """A config that fills a :class:`_Reads`."""

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if not isinstance(value, CfgNode):
            reads, path = self.__dict__["reads"], self.__dict__["path"]
            reads.by_code[sys._getframe(1).f_code].add(path + name)
        return value


def _recorded(cfg: CfgNode, reads: _Reads, path: str = "") -> _RecordedConfig:
    node = _RecordedConfig()
    for key, value in cfg.items():
        node[key] = (
            _recorded(value, reads, f"{path}{key}.") if isinstance(value, CfgNode) else value
        )
    node.__dict__.update(reads=reads, path=path)
    return node


@contextmanager
def _explained(reads: _Reads, cfg: CfgNode) -> Iterator[None]:
    """Turn an exception of Detectron2 into one line with the keys that the failing code read."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        frames = [frame for frame, _ in traceback.walk_tb(e.__traceback__)]
        if not all(map(_is_known, frames)):
            if any(frame.f_code is _run.__code__ for frame in frames):
                return
            raise
        _check_features(cfg)
        raise UserError(_explain(e, frames, reads, cfg)) from e


def _check_features(cfg: CfgNode) -> None:
    """Raise a clearer error than Detectron2's if the backbone lacks a feature that a head takes."""
    try:
        with torch.device("meta"):
            features = list(build_backbone(cfg).output_shape())
    except Exception:  # the error to explain is the backbone's own
        return
    check_features(cfg, features)


def _is_known(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in _KNOWN and not name.startswith(_PROJECTS)


def _explain(error: Exception, frames: List[FrameType], reads: _Reads, cfg: CfgNode) -> str:
    cause = " ".join(str(error).split())
    if isinstance(error, AssertionError):
        if " " not in cause:  # not a sentence
            cause = f"{traceback.extract_tb(error.__traceback__)[-1].line} {cause}".strip()
    else:
        cause = f"{type(error).__name__}: {cause}"
    defaults = default_config()
    # Features are named by one part of a model and taken by another.
    of_callers = {key for frame in frames for key in reads.by_code.get(frame.f_code, ())}
    features = {key for key in of_callers if key.endswith(".IN_FEATURES")}
    values = {key: get_value(cfg, key) for key in sorted(_keys_read(frames, reads) | features)}
    quoted = [k for k, v in values.items() if v and isinstance(v, (str, list)) and str(v) in cause]
    # First the keys whose names are in the error, then those with another value than the default.
    suspects = quoted or sorted(
        values,
        key=lambda k: (
            k.rpartition(".")[2].lower() not in cause,
            values[k] == get_value(defaults, k),
        ),
    )
    culprits = ", ".join(f"{key} {values[key]!r}"[:120] for key in suspects[:_MOST_KEYS])
    culprits += ": " if culprits else ""
    return printable(f"{culprits}Detectron2 cannot use this: {cause[:300]}")


def _keys_read(frames: List[FrameType], reads: _Reads) -> Set[str]:
    """Return the keys read by the failing function, else by its class, else by its caller."""
    for frame in reversed(frames):
        own = reads.by_code.get(frame.f_code)
        if own:
            return own
        owner = frame.f_locals.get("self")
        if isinstance(owner, Backbone):  # built by functions, each of which read the keys of a part
            return {
                k for keys in reads.by_code.values() for k in keys if k.startswith(_OF_BACKBONE)
            }
        if isinstance(owner, nn.Module):
            functions = [
                inspect.unwrap(getattr(f, "__func__", f))
                for cls in type(owner).__mro__
                for f in vars(cls).values()
            ]
            codes = {getattr(f, "__code__", None) for f in functions}
            of_class = set().union(*(reads.by_code.get(code, ()) for code in codes))
            if of_class:
                return of_class
    return set()
