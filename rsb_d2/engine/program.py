"""Train or evaluate the model of a config: the program of train_net.py and ``rsb-d2 train``."""

import argparse
import sys
from contextlib import contextmanager
from typing import Any, Dict, Iterator

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import nn

from ..checkpoint import Checkpointer
from ..config.setup import setup
from ..errors import UserError, end_with_closed_pipe, printable
from ..memory import reuse_freed_memory
from ..model_zoo.model_zoo import find_config
from ..solver.ema import evaluate_with_average, load_average
from .launch import launch
from .tasks import get_task
from .trainer import Trainer


def run(args: argparse.Namespace) -> Any:
    """Run :func:`main` in as many processes as the command line asks for.

    A mistake of the user ends it with ``SystemExit`` and a message of one line.
    """
    with end_with_closed_pipe(), _errors_in_one_line(args):
        return launch(main, args)


def main(args: argparse.Namespace) -> Dict[str, Any]:
    """Train, or evaluate with ``--eval-only``, in this process; return the results by task.

    ``args.config_file`` is a file or a name in the model zoo. A mistake of the user ends it with
    ``SystemExit`` and a message of one line.
    """
    with _errors_in_one_line(args):
        args = argparse.Namespace(**{**vars(args), "config_file": find_config(args.config_file)})
        cfg = setup(args)
        if cfg.MODEL.DEVICE == "cpu":
            reuse_freed_memory()
        if args.eval_only:
            return evaluate(cfg, args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


@contextmanager
def _errors_in_one_line(args: argparse.Namespace) -> Iterator[None]:
    try:
        yield
    except UserError as e:
        sys.exit(f"{getattr(args, 'prog', 'train_net.py')}: error: {printable(str(e))}")


def evaluate(cfg: CfgNode, resume: bool) -> Dict[str, Any]:
    """Evaluate ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint of the run."""
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if checkpointer.report and checkpointer.report.initial:
        raise UserError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is not a complete {get_task(cfg).name} of this "
            f"config: it lacks {', '.join(checkpointer.report.initial[:3])}, ..."
        )
    results = _test(cfg, _optimized(cfg, model))
    if cfg.MODEL_EMA.ENABLED and load_average(model, checkpoint, cfg.MODEL.WEIGHTS):
        results = evaluate_with_average(_test, cfg, results, _optimized(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _optimized(cfg: CfgNode, model: nn.Module) -> nn.Module:
    return get_task(cfg).optimize(model) if cfg.TEST.OPTIMIZE else model


def _test(cfg: CfgNode, model: nn.Module) -> Dict[str, Any]:
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    return results
