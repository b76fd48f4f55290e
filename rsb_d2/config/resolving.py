"""The only place that changes a config after it was read: values that follow from others.

:func:`resolve` fills them in, in one order, and logs one table of what it changed and why. To
resolve a config again, as the ``config.yaml`` of a run, changes nothing.
"""

import os
from collections.abc import Collection
from typing import Any, Sequence, Tuple

import torch
from detectron2.config import CfgNode, get_cfg

from ..data import register_coco_json
from ..data.class_names import fill_class_names
from ..data.loader import epoch_size
from ..engine.tasks import get_task
from ..engine.train_step import cpu_has_bfloat16
from ..errors import UserError, first
from ..evaluation.results import metric_names, uses_best_metric
from ..extensions import DATASET_SOURCES
from ..solver.epochs import is_by_epochs, keep_last_word, resolve_epochs
from .checks import check_datasets, check_files, check_values, keypoint_names
from .defaults import check_has_keys
from .nodes import Changes

_DEFAULTS = get_cfg()
_DEFAULT_METRIC = "bbox/AP"
# Keys of DATASETS that hold a path, or a list of paths ...
_PATHS = ("CACHE", "PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST")
# ... and those that hold lists of entries, with the places of the paths in an entry.
_PATHS_IN_ENTRIES = {"COCO_JSON": (1, 2), "IMAGE_FOLDER": (1,), "TIMM": (2,)}


def resolve(cfg: CfgNode, layers: Sequence[Collection[str]] = (), eval_only: bool = False) -> None:
    """Fill in the values that follow from others, from the machine and from the data.

    The order: paths, epochs or iterations, the backbone and its images, the device, the precision;
    then the data sets are registered, and the classes, the keypoints, the best metric and the
    schedule follow from them.

    Args:
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`, not frozen; changed in place.
        layers (sequence of collections of str): the keys that each YAML file and the command line
            contain, see :func:`rsb_d2.config.loading.read_config`.
        eval_only (bool): leave out what only training reads.

    Raises:
        UserError: if a value is outside its range, if values contradict each other, or if data
            cannot be used.
    """
    check_has_keys(cfg, "")
    table = Changes(cfg)
    _resolve_keys(cfg, layers, table)
    check_values(cfg, eval_only)
    with table.because("torch finds no GPU"):
        _resolve_device(cfg)
    with table.because(
        "slower on a CPU without bfloat16; SOLVER.AMP.DTYPE bfloat16 enables it on one that has it"
    ):
        resolve_amp(cfg)
    _resolve_data(cfg, eval_only, table)
    table.log()


def resolve_keys(cfg: CfgNode, layers: Sequence[Collection[str]] = ()) -> None:
    """Fill in only the values that follow from other keys, without looking at machine and data."""
    table = Changes(cfg)
    _resolve_keys(cfg, layers, table)
    table.log()


def _resolve_keys(cfg: CfgNode, layers: Sequence[Collection[str]], table: Changes) -> None:
    with table.because("~ is the home directory"):
        expand_paths(cfg)
    with table.because("epochs or iterations: the key that is written last counts"):
        prefix = "SOLVER."
        keep_last_word(
            cfg, [{k[len(prefix) :] for k in layer if k.startswith(prefix)} for layer in layers]
        )
    with table.because("the network is timm's"):
        get_task(cfg).resolve(cfg, explicit_resnets_keys(layers))


def expand_paths(cfg: CfgNode) -> None:
    """Replace ``~`` at the beginning of every path in a config by the home directory."""
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = map(_expand, (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS))
    for key in _PATHS:
        cfg.DATASETS[key] = _expand(cfg.DATASETS[key])
    for key, places in _PATHS_IN_ENTRIES.items():
        entries = cfg.DATASETS[key]
        if isinstance(entries, (list, tuple)):
            cfg.DATASETS[key] = type(entries)(_expand_entry(entry, places) for entry in entries)


def _expand(value: Any) -> Any:
    """A path or a list of paths; any other value, which a check reports, as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_expand, value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def _expand_entry(entry: Any, places: Tuple[int, ...]) -> Any:
    if not isinstance(entry, (list, tuple)):
        return entry
    return type(entry)(_expand(v) if i in places else v for i, v in enumerate(entry))


def explicit_resnets_keys(layers: Sequence[Collection[str]]) -> Collection[str]:
    """The keys of ``MODEL.RESNETS`` that somebody wrote about a ResNet of Detectron2's.

    A file that names a model in ``MODEL.TIMM.NAME`` may be one that a run has written, with all
    keys at whatever value, so it does not count. The command line, the last layer, always does.
    """
    prefix = "MODEL.RESNETS."
    *files, command_line = layers or [()]
    counting = [layer for layer in files if "MODEL.TIMM.NAME" not in layer] + [command_line]
    return {k[len(prefix) :] for layer in counting for k in layer if k.startswith(prefix)}


def _resolve_device(cfg: CfgNode) -> None:
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"


def resolve_amp(cfg: CfgNode) -> None:
    """Disable mixed precision on a CPU, unless bfloat16 is asked for by name or is native."""
    amp = cfg.SOLVER.AMP
    if cfg.MODEL.DEVICE.startswith("cuda") or amp.DTYPE == "bfloat16":
        return
    if not (amp.DTYPE == "native" and cpu_has_bfloat16()):
        amp.ENABLED = False


def _resolve_data(cfg: CfgNode, eval_only: bool, table: Changes) -> None:
    for register in DATASET_SOURCES:
        register(cfg, eval_only=eval_only)
    register_coco_json(cfg, eval_only=eval_only)
    check_datasets(cfg, eval_only)
    with table.because("the classes of the data"):
        fill_class_names(cfg)
    if cfg.MODEL.KEYPOINT_ON:
        names = keypoint_names(cfg, eval_only)
        with table.because(f"the data has the keypoints {first(names, 3)}"):
            _resolve_num_keypoints(cfg, len(names))
    if eval_only:
        return
    with table.because(f"{first(cfg.DATASETS.TEST, 1)} is not evaluated by boxes"):
        _resolve_best_metric(cfg)
    if is_by_epochs(cfg):
        get_task(cfg).check_data(cfg, eval_only)
        check_files(cfg, eval_only)
        num_images = _num_training_images(cfg)
        with table.because(f"{num_images} images an epoch, {cfg.SOLVER.IMS_PER_BATCH} a batch"):
            resolve_epochs(cfg, num_images)


def _resolve_num_keypoints(cfg: CfgNode, number: int) -> None:
    """Replace Detectron2's default, 17, by the number of keypoints in the data."""
    head = cfg.MODEL.ROI_KEYPOINT_HEAD
    if number and head.NUM_KEYPOINTS == _DEFAULTS.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
        head.NUM_KEYPOINTS = number


def _resolve_best_metric(cfg: CfgNode) -> None:
    """Replace the default by the evaluator's first metric where there is no ``bbox/AP``."""
    names = cfg.DATASETS.TEST
    if not uses_best_metric(cfg) or cfg.SOLVER.BEST_METRIC != _DEFAULT_METRIC or len(names) > 1:
        return
    known = metric_names(cfg, names[0])  # empty for another project's evaluator
    if known and _DEFAULT_METRIC not in known:
        cfg.SOLVER.BEST_METRIC = known[0]


def _num_training_images(cfg: CfgNode) -> int:
    """Return the samples of an epoch: each image once, however often it is repeated."""
    num_images = epoch_size(cfg, len(get_task(cfg).records(cfg, "TRAIN")))
    if not num_images:
        raise UserError("DATASETS.TRAIN: there is no image to train on")
    return num_images
