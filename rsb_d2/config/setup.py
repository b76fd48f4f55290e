"""From the command line to a checked, frozen config and an output folder."""

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from logging.handlers import MemoryHandler

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ..checkpoint import files_of_run, has_run, has_weights, set_aside
from ..errors import UserError, is_utf8, printable
from .loading import read_config
from .resolving import resolve
from .validating import validate


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the config of a run, and set up logging and the output folder.

    Everything that can be checked without training is checked before anything is written, so a
    mistake leaves an earlier run's output unchanged.

    Args:
        args (Namespace): from ``detectron2.engine.default_argument_parser()``.

    Returns:
        CfgNode: frozen.
    """
    args = argparse.Namespace(**vars(args))
    args.config_file = os.path.expanduser(args.config_file)  # which Detectron2 reads, too
    with _messages_held_back():  # until there is an output folder with a log
        cfg, layers = read_config(args.config_file, args.opts)
        resolve(cfg, layers, args.eval_only)
        validate(cfg, args.eval_only, args.resume)
        _check_output_dir(cfg.OUTPUT_DIR)
        if not (args.eval_only or (args.resume and has_run(cfg.OUTPUT_DIR))):
            _set_earlier_run_aside(cfg)
        cfg.freeze()
        written = _of_evaluation(cfg) if args.eval_only else cfg
        default_setup(written, args)
        setup_logger(written.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="rsb_d2")
        _escape_in_logs()
    return cfg


@contextlib.contextmanager
def _messages_held_back():
    """Hold this project's messages back for the handlers that are added, such as the log file's."""
    ours, *others = (logging.getLogger(name) for name in ("rsb_d2", "detectron2", "fvcore"))
    ours.setLevel(logging.INFO)
    before = list(ours.handlers)
    before_others = [handler for logger in others for handler in logger.handlers]
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
        added += [h for logger in others for h in logger.handlers if h not in before_others]
        for handler in added:
            _ignore_full_disk(handler)


def _ignore_full_disk(handler: logging.Handler) -> None:
    """Do not report each message that a full disk cannot take; the run ends with one line on it."""
    tell = handler.handleError

    def handle_error(record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            tell(record)

    handler.handleError = handle_error


def _escape_in_logs() -> None:
    """Let log streams escape characters that they cannot encode, as in names that are not UTF-8."""
    for handler in logging.getLogger("rsb_d2").handlers:
        stream = getattr(handler, "stream", None)
        if hasattr(stream, "reconfigure") and not stream.closed:
            stream.reconfigure(errors="backslashreplace")


def _set_earlier_run_aside(cfg: CfgNode) -> None:
    """Move an earlier run in ``OUTPUT_DIR``, and update the paths of the config that lead to it."""
    folder, moved = cfg.OUTPUT_DIR, {}
    if comm.is_main_process():
        moved = set_aside(folder, files_of_run(folder))
    moved = comm.all_gather(moved)[0]
    root = os.path.realpath(folder)

    def follow(path: str) -> str:
        if not path:
            return path
        name, *rest = os.path.relpath(os.path.realpath(path), root).split(os.sep)
        return os.path.join(moved[name], *rest) if name in moved else path

    cfg.MODEL.WEIGHTS = follow(cfg.MODEL.WEIGHTS)
    for key in ("PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        cfg.DATASETS[key] = tuple(map(follow, cfg.DATASETS[key]))


def _of_evaluation(cfg: CfgNode) -> CfgNode:
    """Return the config with a separate folder for the config and the log of an evaluation.

    Those of a training in ``OUTPUT_DIR`` stay, as its weights belong to its config.
    """
    if not has_weights(cfg.OUTPUT_DIR):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "inference")
    cfg.freeze()
    return cfg


def _check_output_dir(output_dir: str) -> None:
    if not output_dir:
        raise UserError("OUTPUT_DIR is empty: name a folder for logs and checkpoints")
    if not is_utf8(output_dir):  # which TensorBoard's writer needs
        raise UserError(f"OUTPUT_DIR: the name {printable(output_dir)} is not UTF-8; name another")
    try:
        PathManager.mkdirs(output_dir)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as e:
        raise UserError(f"OUTPUT_DIR: cannot write to {output_dir}: {e.strerror}") from e
