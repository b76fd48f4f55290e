#!/usr/bin/env python
"""Train or evaluate a detector of rsb_d2, or pretrain a backbone; Detectron2's command line."""

import sys
from contextlib import contextmanager

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from rsb_d2 import Checkpointer, Trainer, UserError
from rsb_d2.config.setup import setup
from rsb_d2.engine import launch
from rsb_d2.engine.tasks import get_task
from rsb_d2.errors import printable
from rsb_d2.memory import reuse_freed_memory
from rsb_d2.solver.ema import evaluate_with_average, load_average


@contextmanager
def errors_in_one_line():
    try:
        yield
    except UserError as e:
        sys.exit(f"train_net.py: error: {printable(str(e))}")


def main(args):
    with errors_in_one_line():
        cfg = setup(args)
        if cfg.MODEL.DEVICE == "cpu":
            reuse_freed_memory()
        if args.eval_only:
            return evaluate(cfg, args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def evaluate(cfg, resume):
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    if checkpointer.report and checkpointer.report.initial:
        raise UserError(
            f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is not a complete {get_task(cfg).name} of this "
            f"config: it lacks {', '.join(checkpointer.report.initial[:3])}, ..."
        )
    results = test(cfg, optimized(cfg, model))
    if cfg.MODEL_EMA.ENABLED and load_average(model, checkpoint, cfg.MODEL.WEIGHTS):
        results = evaluate_with_average(test, cfg, results, optimized(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def optimized(cfg, model):
    return get_task(cfg).optimize(model) if cfg.TEST.OPTIMIZE else model


def test(cfg, model):
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    return results


if __name__ == "__main__":
    with errors_in_one_line():
        launch(main, default_argument_parser().parse_args())
