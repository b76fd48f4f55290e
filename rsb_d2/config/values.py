"""Checks of single values: numbers against their ranges, and names against the known ones.

yacs checks only that a value has the type of the default, and Detectron2 notices many a wrong value
hours later or never.
"""

import difflib
import importlib.util
import logging
import math
from typing import Any, Iterable, List, NamedTuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm

from ..errors import UserError, first
from .defaults import add_rsb_config
from .nodes import flat_items, get_value

logger = logging.getLogger(__name__)


class _Range(NamedTuple):
    """The numbers from ``low`` to ``high``, and their description."""

    words: str
    low: float = -math.inf
    high: float = math.inf
    is_open: bool = False  # without low itself

    def holds(self, value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return (value > self.low if self.is_open else value >= self.low) and value <= self.high


_FINITE = _Range("that is finite")
_POSITIVE = _Range("above 0", 0, is_open=True)
_NOT_NEGATIVE = _Range("0 or more", 0)
_COUNT = _Range("1 or more", 1)
_SHARE = _Range("between 0 and 1", 0, 1)
_BELOW_1 = _Range("from 0 to below 1", 0, math.nextafter(1, 0))
_SEED = _Range("below 2^31; a negative one is drawn again in each run", high=2**31 - 1)

# For a list, the range is of each of its values. None, the default of some keys, always passes.
_RANGES = {
    "DATALOADER.NUM_WORKERS": _NOT_NEGATIVE,
    "DATASETS.IMAGE_CACHE_GB": _NOT_NEGATIVE,
    "INPUT.CLASSIFIER.TEST_BATCH": _COUNT,
    "INPUT.CLASSIFIER.TEST_CROP_RATIO": _Range("above 0 and at most 1", 0, 1, is_open=True),
    "INPUT.CLASSIFIER.TEST_SIZE": _COUNT,
    "INPUT.MIN_SIZE_TEST": _NOT_NEGATIVE,  # 0 leaves the images as they are
    "INPUT.MAX_SIZE_TEST": _COUNT,
    "MODEL.PIXEL_MEAN": _FINITE,
    "MODEL.PIXEL_STD": _POSITIVE,
    "MODEL.BACKBONE.FREEZE_AT": _NOT_NEGATIVE,
    "MODEL.CLASSIFIER.NUM_CLASSES": _COUNT,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": _COUNT,
    "MODEL.RETINANET.SCORE_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NUM_CLASSES": _COUNT,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _COUNT,
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _COUNT,
    "MODEL.ANCHOR_GENERATOR.SIZES": _POSITIVE,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _POSITIVE,
    "TEST.AUG.MIN_SIZES": _COUNT,
    "TEST.AUG.MAX_SIZE": _COUNT,
    "TEST.DETECTIONS_PER_IMAGE": _COUNT,
    "SEED": _SEED,
}
_RANGES_OF_TRAINING = {
    "DATALOADER.MAX_BAD_IMAGES": _NOT_NEGATIVE,
    "DATALOADER.REPEAT_THRESHOLD": _NOT_NEGATIVE,
    "DATALOADER.RANDOM_SUBSET_RATIO": _Range("above 0 and at most 1", 0, 1, is_open=True),
    "INPUT.CLASSIFIER.COLOR_JITTER": _NOT_NEGATIVE,
    "INPUT.CLASSIFIER.CROP_RATIO": _POSITIVE,
    "INPUT.CLASSIFIER.CROP_SCALE": _Range("above 0 and at most 1", 0, 1, is_open=True),
    "INPUT.CLASSIFIER.CUTMIX_ALPHA": _NOT_NEGATIVE,
    "INPUT.CLASSIFIER.FLIP_PROB": _SHARE,
    "INPUT.CLASSIFIER.MIXUP_ALPHA": _NOT_NEGATIVE,
    "INPUT.CLASSIFIER.MIX_GROUP": _NOT_NEGATIVE,
    "INPUT.CLASSIFIER.MIX_PROB": _SHARE,
    "INPUT.CLASSIFIER.REPEATS": _COUNT,
    "INPUT.CLASSIFIER.SWITCH_PROB": _SHARE,
    "INPUT.CLASSIFIER.TRAIN_SIZE": _COUNT,
    "INPUT.LSJ.MIN_SCALE": _POSITIVE,
    "INPUT.LSJ.MAX_SCALE": _POSITIVE,
    "INPUT.LSJ.SIZE": _COUNT,
    "INPUT.MIN_SIZE_TRAIN": _NOT_NEGATIVE,
    "INPUT.MAX_SIZE_TRAIN": _COUNT,
    "MODEL.CLASSIFIER.DROPOUT": _BELOW_1,
    "MODEL.CLASSIFIER.DROP_PATH_RATE": _BELOW_1,
    "MODEL.CLASSIFIER.LABEL_SMOOTHING": _BELOW_1,
    "MODEL.CLASSIFIER.TARGET_THRESH": _Range("below 1; a negative one is off", high=1 - 1e-6),
    "MODEL_EMA.DECAY": _BELOW_1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _SHARE,
    "MODEL.RETINANET.IOU_THRESHOLDS": _SHARE,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": _NOT_NEGATIVE,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": _SHARE,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.IOU_THRESHOLDS": _SHARE,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _COUNT,
    "SOLVER.ACCUMULATE_STEPS": _COUNT,
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.BETAS": _SHARE,
    "SOLVER.BIAS_LR_FACTOR": _POSITIVE,
    "SOLVER.CHECKPOINT_KEEP": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.EARLY_STOP_PATIENCE": _NOT_NEGATIVE,
    "SOLVER.GAMMA": _POSITIVE,
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.LAMB.EPS": _POSITIVE,
    "SOLVER.LAMB.MAX_GRAD_NORM": _NOT_NEGATIVE,
    "SOLVER.MAX_EPOCHS": _NOT_NEGATIVE,
    "SOLVER.MAX_ITER": _COUNT,
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.REFERENCE_WORLD_SIZE": _NOT_NEGATIVE,
    "SOLVER.STEPS": _COUNT,
    "SOLVER.STEP_EPOCHS": _COUNT,
    "SOLVER.WARMUP_EPOCHS": _NOT_NEGATIVE,
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": _NOT_NEGATIVE,
    "TEST.EVAL_PERIOD": _NOT_NEGATIVE,
    "VIS_PERIOD": _NOT_NEGATIVE,
}
# Of all keys of a name below MODEL: Detectron2 accepts any value, and builds a wrong model or loss.
_RANGES_OF_MODEL = {
    "BBOX_REG_WEIGHTS": _POSITIVE,
    "BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
    "CONV_DIM": _COUNT,
    "CONVS_DIM": _COUNT,
    "COMMON_STRIDE": _COUNT,
    "FC_DIM": _COUNT,
    "INSTANCE_LOSS_WEIGHT": _NOT_NEGATIVE,
    "LOSS_WEIGHT": _NOT_NEGATIVE,
    "NUM_CONV": _NOT_NEGATIVE,
    "NUM_CONVS": _NOT_NEGATIVE,
    "NUM_FC": _NOT_NEGATIVE,
    "NUM_KEYPOINTS": _COUNT,
    "OUT_CHANNELS": _COUNT,
    "POOLER_RESOLUTION": _COUNT,
    "POOLER_SAMPLING_RATIO": _NOT_NEGATIVE,
    "SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "SMOOTH_L1_LOSS_BETA": _NOT_NEGATIVE,
    "STAGE_LOSS_WEIGHTS": _NOT_NEGATIVE,
}
# In addition to those whose default is None: Detectron2's optimizers then take SOLVER.WEIGHT_DECAY
# and BASE_LR.
_MAY_BE_NONE = ("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.BIAS_LR_FACTOR")
_CHOICES = {
    "INPUT.CLASSIFIER.INTERPOLATION": ("bicubic", "bilinear", "random"),
    "MODEL.CLASSIFIER.LOSS": ("bce", "ce"),
    "MODEL_EMA.DEVICE": ("", "cpu"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "SOLVER.AMP.DTYPE": ("auto", "native", "bfloat16", "float16"),
    "SOLVER.BEST_MODE": ("auto", "max", "min"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "SOLVER.DECAY_FILTER": ("auto", "detectron2", "timm"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}
_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}


def check_values(cfg: CfgNode, eval_only: bool = False) -> None:
    """Check the values of a config, each by itself or against its neighbors.

    A key that a version of Detectron2 does not have is passed over.

    Args:
        cfg (CfgNode): with this project's keys; not changed.
        eval_only (bool): leave out what only training reads.

    Raises:
        UserError: for the first value that cannot be used: it names the key, the value and what
            to write instead.
    """
    check_no_key_is_empty(cfg)
    for key, range_ in {**_RANGES, **({} if eval_only else _RANGES_OF_TRAINING)}.items():
        _check_range(key, get_value(cfg, key), range_)
    for key, value in flat_items(cfg.MODEL, "MODEL."):
        # The keys of a group only: MODEL.GROUP.NAME.
        if key.count(".") == 2 and (range_ := _RANGES_OF_MODEL.get(key.rpartition(".")[2])):
            _check_range(key, value, range_)
    for key, choices in _CHOICES.items():
        _check_choice(key, get_value(cfg, key), choices)
    for key, registry in _REGISTRIES.items():
        # "PrecomputedProposals" and "" are ways of having none.
        name = get_value(cfg, key)
        if name not in ("", "PrecomputedProposals") and name not in registry:
            raise UserError(f"{key} is {name!r}; {_did_you_mean(name, [n for n, _ in registry])}")
    if len(cfg.MODEL.PIXEL_MEAN) != len(cfg.MODEL.PIXEL_STD):
        raise UserError(
            f"MODEL.PIXEL_MEAN has {len(cfg.MODEL.PIXEL_MEAN)} values, MODEL.PIXEL_STD has "
            f"{len(cfg.MODEL.PIXEL_STD)}; write one of each for a channel"
        )
    _check_device(cfg.MODEL.DEVICE)
    if cfg.OUTPUT_DIR.startswith("~"):
        raise UserError(
            f"OUTPUT_DIR is {cfg.OUTPUT_DIR}; write the home directory in full, or call "
            "rsb_d2.config.resolve(cfg), which replaces ~"
        )
    _check_proposals(cfg, eval_only)
    _check_expected_results(cfg)
    if not eval_only:
        _check_training_sizes(cfg)
        _check_batch(cfg)


def check_no_key_is_empty(cfg: CfgNode) -> None:
    """Check that no key is None, which yacs lets any key be, unless that means something.

    Args:
        cfg (CfgNode): not changed; keys that are not of Detectron2 or this project are passed over.

    Raises:
        UserError: for the first key that is None or has None in a list.
    """
    defaults = get_cfg()
    add_rsb_config(defaults)
    for key, default in flat_items(defaults):
        value = get_value(cfg, key, default)
        if None in _flat(value) and default is not None and key not in _MAY_BE_NONE:
            what = "is empty (None)" if value is None else f"has an empty item: {value!r}"
            raise UserError(
                f"{key} {what}; write a value, such as the default {default!r}, or leave the key "
                "out"
            )


def _flat(value: Any) -> List[Any]:
    if isinstance(value, (list, tuple)):
        return [v for item in value for v in _flat(item)]
    return [value]


def _check_range(key: str, value: Any, range_: _Range) -> None:
    if value is None or all(range_.holds(v) for v in _flat(value)):
        return
    each = "each value" if isinstance(value, (list, tuple)) else "it"
    raise UserError(f"{key} is {value!r}; {each} must be a number {range_.words}")


def _check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    if value is not None and value not in choices:
        *others, last = [choice or '""' for choice in choices]
        words = f"{', '.join(others)} or {last}"
        raise UserError(f"{key} is {value!r}; write {words}")


def _did_you_mean(name: Any, names: List[str]) -> str:
    matches = difflib.get_close_matches(str(name), names, n=3)
    if matches:
        return f"did you mean {' or '.join(matches)}?"
    return f"write one of {', '.join(sorted(names))}"


def _check_device(device: str) -> None:
    try:
        parsed = torch.device(device)
    except RuntimeError:
        raise UserError(f"MODEL.DEVICE is {device!r}; write cpu or cuda") from None
    if parsed.type == "cuda" and (parsed.index or 0) >= torch.cuda.device_count() > 0:
        raise UserError(
            f"MODEL.DEVICE is {device}, but there are {torch.cuda.device_count()} GPUs, counted "
            "from 0; write cuda"
        )


def _check_proposals(cfg: CfgNode, eval_only: bool) -> None:
    precomputed = cfg.MODEL.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals"
    if precomputed and not cfg.MODEL.LOAD_PROPOSALS:
        raise UserError(
            "MODEL.PROPOSAL_GENERATOR.NAME is PrecomputedProposals, but none are loaded; write "
            "MODEL.LOAD_PROPOSALS True and a file for each data set in DATASETS.PROPOSAL_FILES_*"
        )
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        files, names = cfg.DATASETS[f"PROPOSAL_FILES_{split}"], cfg.DATASETS[split]
        if cfg.MODEL.LOAD_PROPOSALS and len(files) != len(names):
            raise UserError(
                f"DATASETS.PROPOSAL_FILES_{split} has {len(files)} files, but DATASETS.{split} "
                f"{len(names)} data sets; name one for each, or write MODEL.LOAD_PROPOSALS False"
            )


def _check_expected_results(cfg: CfgNode) -> None:
    """Detectron2 reads them only when the training is over."""
    for entry in cfg.TEST.EXPECTED_RESULTS:
        is_list = isinstance(entry, (list, tuple)) and len(entry) == 4
        if not (
            is_list
            and all(isinstance(name, str) for name in entry[:2])
            and all(map(_FINITE.holds, entry[2:]))
        ):
            raise UserError(
                f"TEST.EXPECTED_RESULTS: {entry!r} is not a task, a metric, its value and a "
                "tolerance; write [['bbox', 'AP', 38.5, 0.2], ...]"
            )


def _check_training_sizes(cfg: CfgNode) -> None:
    sizes, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    sizes = sizes if isinstance(sizes, (list, tuple)) else (sizes,)
    if not sizes or (sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1])):
        what = "the lowest and the highest" if sampling == "range" else "those to draw from"
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes!r}; with INPUT.MIN_SIZE_TRAIN_SAMPLING {sampling} "
            f"it lists {what}"
        )
    crop, lsj = cfg.INPUT.CROP, cfg.INPUT.LSJ
    for key in ("CROP", "LSJ") if cfg.MODEL.MASK_ON else ():
        if cfg.INPUT[key].ENABLED and importlib.util.find_spec("shapely") is None:
            raise UserError(
                f"INPUT.{key}.ENABLED with MODEL.MASK_ON needs shapely, which cuts polygons; "
                "install it: pip install shapely"
            )
    if lsj.ENABLED and crop.ENABLED:
        raise UserError(
            "INPUT.LSJ.ENABLED and INPUT.CROP.ENABLED: large-scale jitter crops by itself; write "
            "INPUT.CROP.ENABLED False"
        )
    if lsj.ENABLED and lsj.MIN_SCALE > lsj.MAX_SCALE:
        raise UserError(
            f"INPUT.LSJ.MIN_SCALE is {lsj.MIN_SCALE}, above INPUT.LSJ.MAX_SCALE {lsj.MAX_SCALE}"
        )
    of_share = crop.TYPE.startswith("relative")
    range_ = _Range("above 0" + " and at most 1" * of_share, 0, 1 if of_share else math.inf, True)
    if crop.ENABLED and not (len(crop.SIZE) == 2 and all(map(range_.holds, crop.SIZE))):
        raise UserError(
            f"INPUT.CROP.SIZE is {crop.SIZE!r}; with INPUT.CROP.TYPE {crop.TYPE} it is two "
            f"numbers {range_.words}"
        )


def _check_batch(cfg: CfgNode) -> None:
    """Check that Detectron2 can scale the batch to the number of processes, and divide it."""
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and batch % reference:
        raise UserError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}, of which SOLVER.IMS_PER_BATCH {batch} is "
            "not a multiple; write the number of processes that this batch is for, or 0"
        )
    world_size = comm.get_world_size()
    if not reference and batch % world_size:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {batch}: it must be a multiple of the number of processes, "
            f"which is {world_size}"
        )


def check_schedule(cfg: CfgNode) -> None:
    """Check that the learning-rate schedule can be built.

    Args:
        cfg (CfgNode): its ``SOLVER``, whose epochs are iterations by now; not changed.

    Raises:
        UserError: if the schedule cannot be built.
    """
    solver = cfg.SOLVER
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.STEPS = tuple(step for step in solver.STEPS if step <= solver.MAX_ITER)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=solver.BASE_LR)
    try:
        build_lr_scheduler(cfg, optimizer)
    except (ValueError, AssertionError) as e:
        raise UserError(
            f"no learning-rate schedule can be made of SOLVER.LR_SCHEDULER_NAME "
            f"{solver.LR_SCHEDULER_NAME}, STEPS {tuple(solver.STEPS)} and MAX_ITER "
            f"{solver.MAX_ITER}: {e}; STEPS must rise and be below MAX_ITER"
        ) from None


def log_schedule_notes(cfg: CfgNode) -> None:
    """Warn of steps and a warm-up beyond the end of the training.

    Not errors: shortening a run of a published config looks like this.
    """
    solver = cfg.SOLVER
    late = [step for step in solver.STEPS if step > solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        logger.warning(
            f"SOLVER.STEPS {tuple(solver.STEPS)}: the training ends at SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}, so the learning rate is not lowered at {first(late)}."
        )
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        logger.warning(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}: the training ends at SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}, before the learning rate has reached SOLVER.BASE_LR."
        )
