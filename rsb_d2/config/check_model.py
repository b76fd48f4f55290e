"""The model of a config, built and tried on black images before anything is written.

Detectron2 checks many keys by assertions while it builds a model, and others not before the first
iteration. So the model is built here, with zeros for weights, and a small batch goes through it, in
training and in evaluation. What fails is reported with the keys that the failing code has read.
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
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import Backbone, build_backbone, build_model
from detectron2.structures import (
    BitMasks,
    Boxes,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
)
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..data.images import build_augmentation
from ..data.random_state import random_state_kept
from ..errors import UserError, printable
from ..modeling.build import check_pixel_format, name_of_weights
from ..modeling.norm import BATCH_NORM_TYPES
from ..modeling.resnets.spec import (
    backbone_spec,
    check_features,
    check_heads,
    is_timm_backbone,
)
from ..solver import build_optimizer
from .defaults import add_rsb_config, check_has_keys

# Whose errors say something about a config. Other code may need more than the batch has, and its
# errors are for who writes it.
_KNOWN = {
    *("rsb_d2", "detectron2", "fvcore", "yacs", "timm", "torch", "torchvision", "numpy"),
    *sys.stdlib_module_names,
}
_OF_BACKBONE = ("MODEL.BACKBONE.", "MODEL.FPN.", "MODEL.RESNETS.", "MODEL.TIMM.")
_PROJECTS = "detectron2.projects"
_SIZES = ((48, 64), (64, 40))
_MOST_PROPOSALS = 8
_MOST_KEYS = 6

_checked: List[Any] = []


def check_model(
    cfg: CfgNode, eval_only: bool, build_and_try: Callable[[CfgNode, bool], nn.Module]
) -> None:
    """Build the model and try it, and build its optimizer and augmentation; throw all of it away.

    A config whose model was the last to be checked is not checked again.

    Args:
        cfg (CfgNode): with values in their ranges; not changed.
        eval_only (bool): leave out what only training needs.
        build_and_try (callable): builds the model of a config and tries it, for training as well
            or for evaluation alone: :func:`build_and_try`, or one for another kind of training.

    Raises:
        UserError: if something cannot be built, or fails with a batch; it names the keys that are
            likely at fault.
    """
    subject = [cfg.MODEL, cfg.INPUT, cfg.SOLVER, eval_only]
    if _checked == subject:
        return
    if is_timm_backbone(cfg):
        check_has_keys(cfg)
        check_heads(cfg)
    reads = _Reads()
    with warnings.catch_warnings(), random_state_kept(with_gpu=False), _explained(reads, cfg):
        warnings.simplefilter("ignore")
        recorded = _recorded(_made_small(cfg), reads)
        model = build_and_try(recorded, eval_only)
        if not eval_only:
            build_optimizer(recorded, model)
            _check_batch(recorded, comm.get_world_size())
    if is_timm_backbone(cfg):
        check_pixel_format(cfg, name_of_weights(cfg.MODEL.WEIGHTS, backbone_spec(cfg).name))
    _checked[:] = [cfg.MODEL.clone(), cfg.INPUT.clone(), cfg.SOLVER.clone(), eval_only]


def build_and_try(cfg: CfgNode, eval_only: bool) -> nn.Module:
    """Build a detector with zeros for weights, and run it on black images with made-up objects.

    Args:
        cfg (CfgNode): for the CPU.
        eval_only (bool): leave out the losses and the augmentation of training.

    Returns:
        nn.Module: the detector.
    """
    with _ZeroInit():
        model = build_model(cfg)
    if hasattr(model, "backbone"):
        check_features(cfg, list(model.backbone.output_shape()))
    build_augmentation(cfg, is_train=not eval_only)
    _try(model, cfg, eval_only)
    return model


def _check_batch(cfg: CfgNode, world_size: int) -> None:
    batch = DefaultTrainer.auto_scale_workers(cfg, world_size).SOLVER.IMS_PER_BATCH
    if batch % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {batch}: it must be a multiple of the number of processes, "
            f"which is {world_size}"
        )


def _made_small(cfg: CfgNode) -> CfgNode:
    """A copy for the CPU, of few proposals, which the box head takes most of the time for."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.VIS_PERIOD = 0
    cfg.MODEL.DEVICE = "cpu"
    for key in ("POST_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TEST"):
        cfg.MODEL.RPN[key] = min(cfg.MODEL.RPN[key], _MOST_PROPOSALS)
    return cfg


class _ZeroInit(TorchDispatchMode):
    """Zeros instead of random numbers, which take most of the time that it takes to build."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def _try(model: nn.Module, cfg: CfgNode, eval_only: bool) -> None:
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
    """An image with two objects of each kind that a model learns from, as a mapper gives it."""
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


# ---- which keys an error is about ----


class _Reads:
    """The keys of a config that each function has read; copies of the config share it."""

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
    """Turn what Detectron2 raises into a line with the keys that the failing code has read."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        frames = [frame for frame, _ in traceback.walk_tb(e.__traceback__)]
        if not all(map(_is_known, frames)):
            if any(frame.f_code is _try.__code__ for frame in frames):
                return
            raise
        _check_features(cfg)
        raise UserError(_explain(e, frames, reads, cfg)) from e


def _check_features(cfg: CfgNode) -> None:
    """Say it better than Detectron2 if a head takes a feature that the backbone does not have."""
    try:
        with torch.device("meta"):
            features = list(build_backbone(cfg).output_shape())
    except Exception:  # which is what is to be explained
        return
    check_features(cfg, features)


def _is_known(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in _KNOWN and not name.startswith(_PROJECTS)


def _explain(error: Exception, frames: List[FrameType], reads: _Reads, cfg: CfgNode) -> str:
    cause = " ".join(str(error).split())
    if isinstance(error, AssertionError):
        if " " not in cause:  # no sentence
            cause = f"{traceback.extract_tb(error.__traceback__)[-1].line} {cause}".strip()
    else:
        cause = f"{type(error).__name__}: {cause}"
    defaults = get_cfg()
    add_rsb_config(defaults)
    # What the parts of a model share, and may differ about, are the features.
    of_callers = {key for frame in frames for key in reads.by_code.get(frame.f_code, ())}
    features = {key for key in of_callers if key.endswith(".IN_FEATURES")}
    values = {key: _value(cfg, key) for key in sorted(_keys_read(frames, reads) | features)}
    quoted = [k for k, v in values.items() if v and isinstance(v, (str, list)) and str(v) in cause]
    # Likelier is the key whose name is in the error, and then a value other than the default.
    suspects = quoted or sorted(
        values,
        key=lambda k: (
            k.rpartition(".")[2].lower() not in cause,
            values[k] == _value(defaults, k),
        ),
    )
    of_what = ", ".join(f"{key} {values[key]!r}"[:120] for key in suspects[:_MOST_KEYS])
    of_what += ": " if of_what else ""
    return printable(f"{of_what}Detectron2 cannot use this: {cause[:300]}")


def _keys_read(frames: List[FrameType], reads: _Reads) -> Set[str]:
    """The keys that the function that failed has read, else its class, else those of its caller."""
    for frame in reversed(frames):
        own = reads.by_code.get(frame.f_code)
        if own:
            return own
        owner = frame.f_locals.get("self")
        if isinstance(owner, Backbone):  # functions have read them, each for a part of it
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


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg.get(part) if isinstance(cfg, CfgNode) else None
    return cfg
