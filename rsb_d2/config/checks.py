"""Checks of values and of data sets.

yacs checks only that a value has the type of the default, and Detectron2 notices many a wrong value
hours later or never.
"""

import importlib.util
import logging
import math
import os
from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
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
from detectron2.utils.file_io import PathManager

from ..data.builtin import check_layouts, check_packages
from ..data.coco_json import NUM_CLASSES_NODE, CocoJsonDataset
from ..data.datasets import registered
from ..data.loader import SAMPLERS
from ..data.opening import is_image_folder
from ..errors import UserError, did_you_mean, first
from ..evaluation.coco_evaluation import keypoint_sigmas
from ..registration import architecture_name
from .defaults import default_config
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
_PART = _Range("above 0 and at most 1", 0, 1, is_open=True)
_BELOW_1 = _Range("from 0 to below 1", 0, math.nextafter(1, 0))
_SEED = _Range("below 2^31; a negative one is drawn again in each run", high=2**31 - 1)


def _by_key(keys_of: Dict[_Range, str]) -> Dict[str, _Range]:
    return {key: range_ for range_, keys in keys_of.items() for key in keys.split()}


# For a list, the range is of each of its values. None, the default of some keys, always passes.
_RANGES = _by_key(
    {
        _NOT_NEGATIVE: """
            DATALOADER.NUM_WORKERS DATASETS.IMAGE_CACHE_GB INPUT.MIN_SIZE_TEST
            MODEL.BACKBONE.FREEZE_AT
        """,
        _COUNT: """
            INPUT.CLASSIFIER.TEST_BATCH INPUT.CLASSIFIER.TEST_SIZE INPUT.MAX_SIZE_TEST
            MODEL.CLASSIFIER.NUM_CLASSES MODEL.RETINANET.NUM_CLASSES
            MODEL.RETINANET.TOPK_CANDIDATES_TEST MODEL.ROI_HEADS.NUM_CLASSES
            MODEL.RPN.POST_NMS_TOPK_TEST MODEL.RPN.PRE_NMS_TOPK_TEST TEST.AUG.MAX_SIZE
            TEST.AUG.MIN_SIZES TEST.DETECTIONS_PER_IMAGE
        """,
        _PART: "INPUT.CLASSIFIER.TEST_CROP_RATIO",
        _FINITE: "MODEL.PIXEL_MEAN",
        _POSITIVE: """
            MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS MODEL.ANCHOR_GENERATOR.SIZES MODEL.PIXEL_STD
        """,
        _SHARE: """
            MODEL.RETINANET.NMS_THRESH_TEST MODEL.RETINANET.SCORE_THRESH_TEST
            MODEL.ROI_HEADS.NMS_THRESH_TEST MODEL.ROI_HEADS.SCORE_THRESH_TEST
            MODEL.RPN.NMS_THRESH
        """,
        _SEED: "SEED",
    }
)
_RANGES_OF_TRAINING = _by_key(
    {
        _NOT_NEGATIVE: """
            DATALOADER.MAX_BAD_IMAGES DATALOADER.REPEAT_THRESHOLD INPUT.CLASSIFIER.COLOR_JITTER
            INPUT.CLASSIFIER.CUTMIX_ALPHA INPUT.CLASSIFIER.MIXUP_ALPHA
            INPUT.CLASSIFIER.MIX_GROUP INPUT.MIN_SIZE_TRAIN MODEL.RETINANET.FOCAL_LOSS_GAMMA
            SOLVER.CHECKPOINT_KEEP SOLVER.EARLY_STOP_PATIENCE SOLVER.LAMB.MAX_GRAD_NORM
            SOLVER.MAX_EPOCHS SOLVER.REFERENCE_WORLD_SIZE SOLVER.WARMUP_EPOCHS
            SOLVER.WARMUP_ITERS SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_BIAS
            SOLVER.WEIGHT_DECAY_NORM TEST.EVAL_PERIOD VIS_PERIOD
        """,
        _PART: "DATALOADER.RANDOM_SUBSET_RATIO INPUT.CLASSIFIER.CROP_SCALE",
        _POSITIVE: """
            INPUT.CLASSIFIER.CROP_RATIO INPUT.LSJ.MAX_SCALE INPUT.LSJ.MIN_SCALE SOLVER.BASE_LR
            SOLVER.BIAS_LR_FACTOR SOLVER.CLIP_GRADIENTS.CLIP_VALUE SOLVER.GAMMA SOLVER.LAMB.EPS
        """,
        _SHARE: """
            INPUT.CLASSIFIER.FLIP_PROB INPUT.CLASSIFIER.MIX_PROB INPUT.CLASSIFIER.SWITCH_PROB
            MODEL.RETINANET.FOCAL_LOSS_ALPHA MODEL.RETINANET.IOU_THRESHOLDS
            MODEL.ROI_HEADS.IOU_THRESHOLDS MODEL.ROI_HEADS.POSITIVE_FRACTION
            MODEL.RPN.IOU_THRESHOLDS MODEL.RPN.POSITIVE_FRACTION SOLVER.BETAS SOLVER.MOMENTUM
            SOLVER.WARMUP_FACTOR
        """,
        _COUNT: """
            INPUT.CLASSIFIER.REPEATS INPUT.CLASSIFIER.TRAIN_SIZE INPUT.LSJ.SIZE
            INPUT.MAX_SIZE_TRAIN MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
            MODEL.RPN.BATCH_SIZE_PER_IMAGE MODEL.RPN.POST_NMS_TOPK_TRAIN
            MODEL.RPN.PRE_NMS_TOPK_TRAIN SOLVER.ACCUMULATE_STEPS SOLVER.CHECKPOINT_PERIOD
            SOLVER.IMS_PER_BATCH SOLVER.MAX_ITER SOLVER.STEPS SOLVER.STEP_EPOCHS
        """,
        _BELOW_1: """
            MODEL.CLASSIFIER.DROPOUT MODEL.CLASSIFIER.DROP_PATH_RATE
            MODEL.CLASSIFIER.LABEL_SMOOTHING MODEL_EMA.DECAY
        """,
        _Range("below 1; a negative one is off", high=1 - 1e-6): """
            MODEL.CLASSIFIER.TARGET_THRESH
        """,
    }
)
# Of all keys of a name below MODEL: Detectron2 accepts any value, and builds a wrong model or loss.
_RANGES_OF_MODEL = _by_key(
    {
        _POSITIVE: "BBOX_REG_WEIGHTS",
        _NOT_NEGATIVE: """
            BBOX_REG_LOSS_WEIGHT INSTANCE_LOSS_WEIGHT LOSS_WEIGHT NUM_CONV NUM_CONVS NUM_FC
            POOLER_SAMPLING_RATIO SMOOTH_L1_BETA SMOOTH_L1_LOSS_BETA STAGE_LOSS_WEIGHTS
        """,
        _COUNT: """
            COMMON_STRIDE CONVS_DIM CONV_DIM FC_DIM NUM_KEYPOINTS OUT_CHANNELS POOLER_RESOLUTION
        """,
    }
)
# In addition to those whose default is None: Detectron2's optimizers then take SOLVER.WEIGHT_DECAY
# and BASE_LR.
_MAY_BE_NONE = ("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.BIAS_LR_FACTOR")
_CHOICES = {
    "INPUT.CLASSIFIER.INTERPOLATION": ("bicubic", "bilinear", "random"),
    "MODEL.CLASSIFIER.LOSS": ("bce", "ce"),
    "MODEL_EMA.DEVICE": ("", "cpu"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "INPUT.DAMAGED_IMAGES": ("auto", "error", "skip", "partial"),
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

    Keys that the installed version of Detectron2 does not have are skipped.
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
            names = sorted(n for n, _ in registry)
            hint = did_you_mean(name, names, f"write one of {', '.join(names)}")
            raise UserError(f"{key} is {name!r}; {hint}")
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
    """Check that no key is None or has None in a list, unless that has a meaning."""
    defaults = default_config()
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
    """Check that the learning-rate schedule can be built; epochs must be resolved by now."""
    solver = cfg.SOLVER
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.STEPS = tuple(step for step in solver.STEPS if step <= solver.MAX_ITER)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=solver.BASE_LR)
    try:
        build_lr_scheduler(cfg, optimizer)
    except (ValueError, AssertionError) as e:
        raise UserError(
            f"cannot build a learning-rate schedule from SOLVER.LR_SCHEDULER_NAME "
            f"{solver.LR_SCHEDULER_NAME}, STEPS {tuple(solver.STEPS)} and MAX_ITER "
            f"{solver.MAX_ITER}: {e}; STEPS must increase and be below MAX_ITER"
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


# ---- data sets ----

# Architectures with Detectron2's head for semantic segmentation.
_WITH_STUFF = ("PanopticFPN", "SemanticSegmentor")
_NUM_KEYPOINTS = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"


def check_datasets(cfg: CfgNode, eval_only: bool) -> None:
    """Check that data sets are named and registered, and that their packages are installed."""
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name the data sets to train on")
    if not eval_only and cfg.DATALOADER.SAMPLER_TRAIN not in SAMPLERS:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN is {cfg.DATALOADER.SAMPLER_TRAIN!r}; write "
            f"{' or '.join(SAMPLERS)}"
        )
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data sets to evaluate on")
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            registered(name, f"DATASETS.{key}")
            if key == "TEST" or not eval_only:
                check_packages(name, key)
    _check_federated_loss(cfg)


def check_files(cfg: CfgNode, eval_only: bool) -> None:
    """Check the files and classes of the data sets that are not in ``DATASETS.COCO_JSON``.

    Detectron2 reads a test set at the first evaluation, too late to report a missing file.
    """
    for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
        for name in cfg.DATASETS[split]:
            load = registered(name, f"DATASETS.{split}")
            if isinstance(load, CocoJsonDataset):
                continue
            # Other functions may read other files than the metadata name.
            if getattr(load, "__module__", "").startswith("detectron2.data.datasets"):
                _check_files(split, name)
            _check_num_classes(cfg, split, name)
    check_layouts(cfg, eval_only)


def _check_files(split: str, name: str) -> None:
    metadata = MetadataCatalog.get(name)
    files: List[Tuple[str, str]] = [
        ("annotation file", metadata.get("json_file")),
        ("image folder", metadata.get("image_root") or metadata.get("image_dir")),
        ("folder", metadata.get("dirname")),
        ("folder of annotations", metadata.get("gt_dir")),
        ("folder of labels", metadata.get("sem_seg_root")),
        ("panoptic annotation file", metadata.get("panoptic_json")),
        ("folder of panoptic pictures", metadata.get("panoptic_root")),
    ]
    for kind, path in files:
        is_there = PathManager.exists if kind.endswith("file") else is_image_folder
        # register_coco_instances takes paths, too.
        path = os.fspath(path or "")
        if path and "://" not in path and not is_there(path):
            raise UserError(
                f"DATASETS.{split}: {name} needs its {kind} at {path}, but there is none; put the "
                "data there, or name the folder above in the environment variable "
                "DETECTRON2_DATASETS"
            )


def _check_num_classes(cfg: CfgNode, split: str, name: str) -> None:
    metadata, architecture = MetadataCatalog.get(name), architecture_name(cfg)
    nodes = {"thing_classes": NUM_CLASSES_NODE.get(architecture)}
    if architecture in _WITH_STUFF:
        nodes["stuff_classes"] = "SEM_SEG_HEAD"
    for kind, node in nodes.items():
        classes = metadata.get(kind)
        if node is None or not classes:
            continue
        key, num_classes = f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES
        if num_classes != len(classes):
            raise UserError(
                f"{key} is {num_classes}, but {name} of DATASETS.{split} has {len(classes)} "
                f"classes; write {key} {len(classes)}"
            )


def _check_federated_loss(cfg: CfgNode) -> None:
    head = cfg.MODEL.ROI_BOX_HEAD
    if not head.get("USE_FED_LOSS", False):  # of Detectron2's main
        return
    if not head.USE_SIGMOID_CE:
        raise UserError(
            "MODEL.ROI_BOX_HEAD.USE_FED_LOSS chooses classes of a sigmoid loss; write "
            "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE True, too"
        )
    # The model is built with them, also to be evaluated.
    for name in cfg.DATASETS.TRAIN:
        if not MetadataCatalog.get(name).get("class_image_count"):
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs the number of images of each class, but "
                f"the metadata of {name} in DATASETS.TRAIN has no class_image_count; "
                "lvis_v1_train has one"
            )


def check_keypoints(cfg: CfgNode, eval_only: bool = False) -> None:
    """Check the keys of keypoints against the metadata of the registered data sets."""
    if not cfg.MODEL.KEYPOINT_ON:
        return
    names = keypoint_names(cfg, eval_only)
    if not names:
        return
    num_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if num_keypoints != len(names):
        raise UserError(
            f"{_NUM_KEYPOINTS} is {num_keypoints}, but the data has {len(names)} keypoints "
            f"({first(names)}); write {_NUM_KEYPOINTS} {len(names)}"
        )
    sigmas = keypoint_sigmas(cfg.TEST.KEYPOINT_OKS_SIGMAS, len(names))
    if not all(sigma > 0 for sigma in sigmas):
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS is {list(sigmas)}; each value must be a number above 0"
        )
    if eval_only:
        return
    for name in cfg.DATASETS.TRAIN:
        pairs = MetadataCatalog.get(name).get("keypoint_flip_map")
        if pairs is None:
            raise UserError(
                f"DATASETS.TRAIN: the metadata of {name} has no keypoint_flip_map; set it to pairs "
                "of names, or to [] if a flip changes no keypoint into another"
            )


def log_keypoint_notes(cfg: CfgNode, eval_only: bool) -> None:
    """Log the sigmas that are used by default, and flips that cannot swap left and right."""
    names = keypoint_names(cfg, eval_only) if cfg.MODEL.KEYPOINT_ON else []
    if names and not len(cfg.TEST.KEYPOINT_OKS_SIGMAS):
        sigmas = keypoint_sigmas((), len(names))
        logger.info(f"TEST.KEYPOINT_OKS_SIGMAS is empty; the sigmas are {first(sigmas, 20)}.")
    if not eval_only and cfg.INPUT.RANDOM_FLIP == "horizontal" and len(names) > 1:
        if not MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).keypoint_flip_map:
            logger.warning(
                "INPUT.RANDOM_FLIP is horizontal, but the names of the keypoints do not tell left "
                "from right, so a flipped object keeps them unchanged. Where that is wrong, "
                "write DATASETS.KEYPOINT_FLIP_PAIRS [[left name, right name], ...] or "
                "INPUT.RANDOM_FLIP none."
            )


def keypoint_names(cfg: CfgNode, eval_only: bool) -> List[str]:
    """Return the names of the keypoints, which all data sets must share; empty if unknown."""
    train = () if eval_only else cfg.DATASETS.TRAIN
    found = {}
    for name in (*train, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(name).get("keypoint_names")
        if names:
            found[name] = list(names)
        elif name in train:
            raise UserError(
                f"MODEL.KEYPOINT_ON: data set {name} does not name its keypoints; set "
                f"MetadataCatalog.get({name!r}).keypoint_names, or write MODEL.KEYPOINT_ON False"
            )
    one = next(iter(found), None)
    for name, names in found.items():
        if names != found[one]:
            raise UserError(
                f"MODEL.KEYPOINT_ON: {one} and {name} must have the same keypoints, in the same "
                f"order; they are {first(found[one])} and {first(names)}"
            )
    return found.get(one, [])
