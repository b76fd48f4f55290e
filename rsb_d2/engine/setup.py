"""From the command line to a checked, frozen config and an output folder."""

import argparse
import contextlib
import difflib
import logging
import tempfile
from logging.handlers import MemoryHandler

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ..checkpoint import check_architecture, has_run, locate
from ..config import add_rsb_config
from ..data import register_coco_json
from ..data.class_names import fill_class_names
from ..data.sample import make_sample_data
from ..errors import UserError
from .amp import check_amp
from .best import check_best_metric
from .check_config import check_config, check_other_datasets
from .resume import check_resumed_config
from .speed import check_compiler

logger = logging.getLogger(__name__)


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the config of a run, check it, and set up logging and the output folder.

    Everything that can be checked without training is checked before anything is written, so a
    mistake leaves an earlier run's output as it was.

    Args:
        args (Namespace): from ``detectron2.engine.default_argument_parser()``.

    Returns:
        CfgNode: frozen.

    Raises:
        UserError: for a mistake in the config, its files or its data.
    """
    cfg = load_config(args.config_file, args.opts)
    with _messages_held_back():  # until there is an output folder with a log
        check_config(cfg, args.eval_only)
        _fall_back_to_cpu(cfg)
        check_amp(cfg)
        check_compiler(cfg)
        _make_sample_data(cfg)
        register_coco_json(cfg, eval_only=args.eval_only)
        _check_datasets(cfg, args.eval_only)
        fill_class_names(cfg)
        if not args.eval_only:
            check_best_metric(cfg)
        build_backbone(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
        _check_weights(cfg, args)
        check_other_datasets(cfg, args.eval_only)
        if args.resume and not args.eval_only and has_run(cfg.OUTPUT_DIR):
            check_resumed_config(cfg)
        _check_output_dir(cfg.OUTPUT_DIR)
        cfg.freeze()
        default_setup(cfg, args)
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rsb_d2")
    # On a full disk, what could not be written to the log would bury the line that says so.
    logging.raiseExceptions = False
    return cfg


def load_config(config_file: str, opts: list) -> CfgNode:
    """Merge a YAML file and ``KEY VALUE`` pairs into this project's default config.

    Args:
        config_file (str): path of a YAML file; ``""`` for none.
        opts (list[str]): ``["SOLVER.BASE_LR", "0.001", ...]``.

    Returns:
        CfgNode: not frozen.

    Raises:
        UserError: if the file is missing or is no YAML, if a key does not exist or a value has
            the wrong type.
    """
    cfg = get_cfg()
    add_rsb_config(cfg)
    if config_file:
        if not PathManager.isfile(config_file):
            raise UserError(f"--config-file: there is no file {config_file}")
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except AttributeError as e:  # yacs asks whatever the file holds for its items
            raise UserError(f"{config_file}: this is no YAML of the form `KEY: value`") from e
        except (KeyError, ValueError, AssertionError, OSError, yaml.YAMLError) as e:
            raise UserError(f"{config_file}: {_explain(cfg, e)}") from e
    if len(opts) % 2:
        raise UserError(
            f"overrides are pairs of KEY VALUE, but there are {len(opts)} words: {opts}"
        )
    try:
        cfg.merge_from_list(opts)
    except (KeyError, ValueError, AssertionError) as e:
        raise UserError(f"command line: {_explain(cfg, e)}") from e
    return cfg


def _explain(cfg: CfgNode, error: Exception) -> str:
    """The message of yacs, with the closest existing keys where one does not exist."""
    message = str(error.args[0] if error.args else error).replace("\n", " ")
    if "Non-existent" not in message:
        return message
    key = message.split(": ")[-1]
    matches = difflib.get_close_matches(key, _all_keys(cfg), n=3)
    return message + (f"; did you mean {', '.join(matches)}?" if matches else "")


def _all_keys(cfg: CfgNode, prefix: str = "") -> list:
    keys = []
    for name, value in cfg.items():
        keys.append(prefix + name)
        if isinstance(value, CfgNode):
            keys += _all_keys(value, f"{prefix}{name}.")
    return keys


@contextlib.contextmanager
def _messages_held_back():
    """Give what this project logs to the handlers that are added meanwhile, the log file's too."""
    ours = logging.getLogger("rsb_d2")
    ours.setLevel(logging.INFO)
    before = list(ours.handlers)
    held = MemoryHandler(capacity=10**6, flushLevel=logging.CRITICAL + 1)
    ours.addHandler(held)
    try:
        yield
    finally:
        ours.removeHandler(held)
        added = [h for h in ours.handlers if h not in before]
        for record in held.buffer:
            for handler in added if before or added else [logging.lastResort]:
                if record.levelno >= handler.level:
                    handler.handle(record)


def _fall_back_to_cpu(cfg: CfgNode) -> None:
    """Put the CPU in the place of a GPU that is not there."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return
    device, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, "cpu"
    logger.warning(f"MODEL.DEVICE is {device}, but torch finds no GPU: running on the CPU.")


def _make_sample_data(cfg: CfgNode) -> None:
    if cfg.DATASETS.SAMPLE_DATA:
        if comm.is_main_process():
            make_sample_data(cfg.DATASETS.SAMPLE_DATA)
        comm.synchronize()


def _check_datasets(cfg: CfgNode, eval_only: bool) -> None:
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name the data sets to train on")
    if eval_only and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name the data sets to evaluate on")
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                matches = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
                raise UserError(
                    f"DATASETS.{key}: no data set is registered as {name!r}; "
                    + (f"did you mean {', '.join(matches)}? " if matches else "")
                    + "A COCO-format one of your own goes into DATASETS.COCO_JSON."
                )


def _check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    if args.resume and has_run(cfg.OUTPUT_DIR):
        return
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        raise UserError("--eval-only needs MODEL.WEIGHTS, the path of a checkpoint")
    if cfg.MODEL.WEIGHTS:
        check_architecture(cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.NAME)
        try:
            locate(cfg.MODEL.WEIGHTS)  # a download that fails, fails here
        except UserError as e:
            raise UserError(f"MODEL.WEIGHTS: {e}") from e


def _check_output_dir(output_dir: str) -> None:
    if not output_dir:
        raise UserError("OUTPUT_DIR is empty: name a folder for logs and checkpoints")
    try:
        PathManager.mkdirs(output_dir)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as e:
        raise UserError(f"OUTPUT_DIR: cannot write to {output_dir}: {e.strerror}") from e
