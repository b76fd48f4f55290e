#!/usr/bin/env python
"""Train or evaluate a detector of rsb_d2, or pretrain a backbone; Detectron2's command line."""

import sys

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from rsb_d2 import Checkpointer, Trainer, UserError
from rsb_d2.config.setup import setup
from rsb_d2.engine import launch
from rsb_d2.engine.tasks import get_task
from rsb_d2.errors import printable
from rsb_d2.evaluation import check_evaluators
from rsb_d2.memory import reuse_freed_memory
from rsb_d2.solver.ema import evaluate_with_average, load_average


def main(args):
    try:
        cfg = setup(args)
        check_evaluators(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            reuse_freed_memory()
        if args.eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR)
            checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
            if checkpointer.report and checkpointer.report.initial:
                raise UserError(
                    f"MODEL.WEIGHTS: {cfg.MODEL.WEIGHTS} is not a complete {get_task(cfg).name} "
                    "of this config: "
                    f"it lacks {', '.join(checkpointer.report.initial[:3])}, ..."
                )
            results = test(cfg, optimized(cfg, model))
            if cfg.MODEL_EMA.ENABLED and load_average(model, checkpoint, cfg.MODEL.WEIGHTS):
                averaged = optimized(cfg, model)
                results = evaluate_with_average(test, cfg, results, averaged)
            if comm.is_main_process():
                verify_results(cfg, results)
            return results
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    except UserError as e:
        sys.exit(f"train_net.py: error: {printable(str(e))}")


def test(cfg, model):
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
    return results


def optimized(cfg, model):
    return get_task(cfg).optimize(model) if cfg.TEST.OPTIMIZE else model


if __name__ == "__main__":
    try:
        launch(main, default_argument_parser().parse_args())
    except UserError as e:
        sys.exit(f"train_net.py: error: {printable(str(e))}")
