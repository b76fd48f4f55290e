"""The checks of a config before a run; nothing here changes it."""

import logging
from typing import List, Tuple

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from ..checkpoint import check_architecture, has_run, locate
from ..checkpoint.run_folder import CONFIG_KEY, read_newest_entry
from ..data.builtin import PANOPTIC
from ..engine.cuda_graphs import check_cuda_graphs
from ..engine.tasks import check_config, get_task
from ..engine.train_step import check_accumulation
from ..engine.trainer import check_compiler
from ..errors import UserError, did_you_mean
from ..evaluation import check_evaluators, check_images
from ..evaluation.build import check_tta
from ..evaluation.results import metric_names, split_metric, uses_best_metric
from ..extensions import TASKS
from ..modeling.spec import BUILDERS
from ..registration import architecture_name
from ..solver.build import check_optimizer
from ..solver.ema import EMA_PREFIX, check_average
from .checks import (
    check_datasets,
    check_files,
    check_keypoints,
    check_schedule,
    log_keypoint_notes,
    log_schedule_notes,
)
from .dry_run import dry_run
from .nodes import flat_items

logger = logging.getLogger(__name__)

# Keys, or beginnings of keys, with whose values a resumed run would no longer be the same run ...
_MATTERS = (
    *("MODEL.", "MODEL_EMA.", "INPUT.", "SOLVER.", "SEED", "DATALOADER.", "GLOBAL."),
    *("DATASETS.TRAIN", "DATASETS.CLASS_NAMES", "DATASETS.CLASS_IDS", "DATASETS.PROPOSAL_FILES_TR"),
    "DATASETS.KEYPOINT_FLIP_PAIRS",
)
# ... except these: where, how fast and how long it runs, what it keeps, how it is evaluated.
_MAY_DIFFER = (
    *("MODEL.WEIGHTS", "MODEL.DEVICE", "MODEL.CHANNELS_LAST", "MODEL.COMPILE"),
    "MODEL.CUDA_GRAPHS",
    *("MODEL.TIMM.FOLD_NORM", "MODEL_EMA.DEVICE", "SOLVER.AMP."),
    *("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.CHECKPOINT_", "SOLVER.RESUME_WITH_CHANGES"),
    *("SOLVER.MAX_EPOCHS", "SOLVER.STEP_EPOCHS", "SOLVER.ACCUMULATE_STEPS"),
    *("SOLVER.BEST_", "SOLVER.EARLY_STOP_PATIENCE", "SOLVER.REFERENCE_WORLD_SIZE"),
    *("DATALOADER.NUM_WORKERS", "DATALOADER.MAX_BAD_IMAGES", "INPUT.DAMAGED_IMAGES"),
)


def validate(cfg: CfgNode, eval_only: bool = False, resume: bool = False) -> None:
    """Check everything that can be checked before training, with a dry run of the model.

    Args:
        cfg (CfgNode): after :func:`rsb_d2.config.resolve`; its data sets are registered. It is not
            changed.
        eval_only (bool): leave out what only training needs.
        resume (bool): whether the run in ``OUTPUT_DIR``, if there is one, is to be resumed.

    Raises:
        UserError: for the first mistake in the config, its files or its data.
    """
    task = get_task(cfg)
    check_config(cfg, eval_only)
    if cfg.MODEL.COMPILE:
        check_compiler(cfg)
    check_datasets(cfg, eval_only)
    task.check_data(cfg, eval_only)
    check_keypoints(cfg, eval_only)
    log_keypoint_notes(cfg, eval_only)
    check_evaluators(cfg)
    if cfg.TEST.AUG.ENABLED:
        check_tta(cfg)
    check_average(cfg)
    if not eval_only:
        check_best_metric(cfg)
        check_optimizer(cfg)
        check_accumulation(cfg, comm.get_world_size())
        check_cuda_graphs(cfg, comm.get_world_size())
    dry_run(cfg, eval_only, task.build_and_run)
    if not (resume and has_run(cfg.OUTPUT_DIR)):  # which has its own weights
        check_weights(cfg, eval_only)
    check_files(cfg, eval_only)
    # An evaluation that does not allow damaged images reports them itself.
    if architecture_name(cfg) not in TASKS and not (
        eval_only and cfg.INPUT.DAMAGED_IMAGES in ("auto", "error")
    ):
        check_images(cfg)
    if not eval_only:
        check_schedule(cfg)
        log_schedule_notes(cfg)
        if resume:
            check_resumed_config(cfg)


def check_best_metric(cfg: CfgNode) -> None:
    """Check the keys of the validation loss, the best checkpoint and early stopping."""
    metric, patience = cfg.SOLVER.BEST_METRIC, cfg.SOLVER.EARLY_STOP_PATIENCE
    if patience and not (cfg.TEST.EVAL_PERIOD > 0 and cfg.DATASETS.TEST and metric):
        raise UserError(
            "SOLVER.EARLY_STOP_PATIENCE counts evaluations: set TEST.EVAL_PERIOD (in "
            "iterations), DATASETS.TEST and SOLVER.BEST_METRIC, too"
        )
    if cfg.TEST.VAL_LOSS and not cfg.DATASETS.TEST:
        raise UserError("TEST.VAL_LOSS: DATASETS.TEST is empty: name the data to compute it on")
    if uses_best_metric(cfg):
        _check_metric(cfg, metric)


def _check_metric(cfg: CfgNode, given: str) -> None:
    names = cfg.DATASETS.TEST
    metric = split_metric(given, names)
    if metric.averaged and not cfg.MODEL_EMA.ENABLED:
        raise UserError(f"SOLVER.BEST_METRIC is {given}: set MODEL_EMA.ENABLED True, too")
    if metric.is_validation_loss:
        if not cfg.TEST.VAL_LOSS:
            raise UserError(f"SOLVER.BEST_METRIC is {given}: set TEST.VAL_LOSS True, too")
        return
    name = f"{metric.task}/{metric.figure}" if metric.task else metric.figure
    dataset = metric.dataset or names[0]
    if len(names) > 1 and not metric.dataset:
        example = f"{EMA_PREFIX if metric.averaged else ''}{dataset}/{name}"
        raise UserError(
            f"SOLVER.BEST_METRIC is {given}, but there are {len(names)} data sets in "
            f"DATASETS.TEST: name one, as in {example}"
        )
    known = metric_names(cfg, dataset)  # empty for another project's evaluator
    if not known or name in known:
        return
    if metric.task.endswith("_TTA"):
        raise UserError(
            f"SOLVER.BEST_METRIC is {given}: test-time augmentation is evaluated at the end of "
            f"the training only; write {metric.task.removesuffix('_TTA')}/{metric.figure}"
        )
    is_panoptic = MetadataCatalog.get(dataset).get("evaluator_type") == "coco_panoptic_seg"
    if is_panoptic and metric.task == "panoptic_seg" and PANOPTIC.is_missing():
        raise UserError(
            f"SOLVER.BEST_METRIC is {given}, which needs {PANOPTIC.module}; install it: "
            f"{PANOPTIC.install}"
        )
    hint = did_you_mean(name, known, f"did you mean {', '.join(known[:3])}?")
    raise UserError(f"SOLVER.BEST_METRIC: evaluation on {dataset} gives no {name}; {hint}")


def check_weights(cfg: CfgNode, eval_only: bool) -> None:
    """Check ``MODEL.WEIGHTS``, and download the file if it is not on this machine."""
    if eval_only and not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs MODEL.WEIGHTS, the path of a checkpoint")
    if not cfg.MODEL.WEIGHTS:
        return
    if cfg.MODEL.TIMM.NAME:
        check_architecture(cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME)
    elif cfg.MODEL.WEIGHTS.startswith("timm://"):
        raise UserError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is for a timm backbone, and MODEL.BACKBONE."
            f"NAME is {cfg.MODEL.BACKBONE.NAME}; write one of {', '.join(BUILDERS)} there"
        )
    try:
        locate(cfg.MODEL.WEIGHTS)  # a download that fails, fails here
    except UserError as e:
        raise UserError(f"MODEL.WEIGHTS: {e}") from e


def check_resumed_config(cfg: CfgNode) -> None:
    """Compare the config with that of the run in ``OUTPUT_DIR`` that is to be resumed, if any.

    A difference in the model, the classes, the batch, the seed, the data or the optimizer is an
    error in all processes, unless ``SOLVER.RESUME_WITH_CHANGES`` is set.
    """
    if not has_run(cfg.OUTPUT_DIR):
        return
    differences = _differences(cfg) if comm.is_main_process() else None
    differences = comm.all_gather(differences)[0]
    that_matter = [text for matters, text in differences if matters]
    if that_matter and not cfg.SOLVER.RESUME_WITH_CHANGES:
        raise UserError(
            f"--resume: the run in {cfg.OUTPUT_DIR} was started with another config: "
            f"{'; '.join(that_matter)}. Give it its own values, or another OUTPUT_DIR, or write "
            "SOLVER.RESUME_WITH_CHANGES True"
        )
    if differences:
        texts = "; ".join(text for _, text in differences)
        logger.warning(f"--resume: the config is no longer that of the run so far: {texts}")


def _differences(cfg: CfgNode) -> List[Tuple[bool, str]]:
    """For each key with another value, whether it matters, and its values before and now."""
    text = read_newest_entry(cfg.OUTPUT_DIR, CONFIG_KEY)
    if not isinstance(text, str):  # a checkpoint of Detectron2's own trainer
        return []
    before = dict(flat_items(yaml.safe_load(text)))
    # As the trainer scales it.
    scaled = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    now = dict(flat_items(yaml.safe_load(scaled.dump())))
    differences = []
    for key in sorted(before.keys() & now.keys()):
        if before[key] == now[key]:
            continue
        matters = key.startswith(_MATTERS) and not key.startswith(_MAY_DIFFER)
        matters = matters and not key.endswith(("_TEST", ".TEST")) and ".TEST_" not in key
        if matters or key.startswith("SOLVER."):
            differences.append((matters, f"{key} was {before[key]!r} and is {now[key]!r}"))
    return differences
