"""Train without interruption, and again with kills and resumes; compare the results.

    python tests/helpers/kill_and_resume.py [--pretraining] [--iterations 12] [--workers 2] [--once]
        FOLDER [KEY VALUE ...]

FOLDER has the sample data in `datasets/rsb_sample`, as `tests/engine/test_resume.py` makes it, or
for a pretraining its objects in `datasets/rsb_sample_objects`. Each training is a process of its
own, which kills itself with SIGKILL at a given point.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.evaluation import COCOEvaluator

from rsb_d2 import Checkpointer, Trainer
from rsb_d2.checkpoint import checkpointer
from rsb_d2.config.setup import setup
from rsb_d2.pretraining.evaluation import ClassificationEvaluator

ROOT = Path(__file__).resolve().parents[2]

SMALL = [
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "4"),
    *("INPUT.MIN_SIZE_TRAIN", "(64, 72, 80)", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.CROP.ENABLED", "True", "TEST.VAL_LOSS", "True"),
]
SMALL_PRETRAINING = [
    *("MODEL.TIMM.NAME", "resnet10t"),
    *(
        "INPUT.CLASSIFIER.REPEATS",
        "3",
        "MODEL.CLASSIFIER.DROP_PATH_RATE",
        "0.2",
        "INPUT.CLASSIFIER.MIX_GROUP",
        "4",
    ),
    *("SOLVER.IMS_PER_BATCH", "8", "SOLVER.WARMUP_ITERS", "4", "SOLVER.AMP.ENABLED", "False"),
    *("INPUT.CLASSIFIER.TRAIN_SIZE", "32", "INPUT.CLASSIFIER.TEST_SIZE", "32"),
    *("TEST.VAL_LOSS", "True"),
]
OPTIONS = ["frcnn_rsb_sample.yaml", SMALL]
PRETRAINING = ["pretrain/resnet50_rsb_sample.yaml", SMALL_PRETRAINING]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class KilledTrainer(Trainer):
    """A trainer that kills its process at a given point of a given iteration."""

    point = None
    at = None

    def is_due(self, point):
        return (self.point, self.at) == (point, self.iter)

    def run_step(self):
        if self.is_due("backward"):  # in the middle of an iteration
            next(self.model.parameters()).data += 1
            self.optimizer.register_step_pre_hook(lambda *_: die())
        if self.is_due("loader"):
            super().run_step()  # the workers have loaded ahead
            die()
        super().run_step()

    def save_checkpoint(self, name):
        if self.is_due("half a checkpoint"):
            save = torch.save

            def half(content, f):
                save(content, f)
                f.truncate(f.tell() // 2)
                f.flush()
                die()

            checkpointer.save_torch.__globals__["torch"].save = half
        if self.is_due("checkpoint without its name"):
            Checkpointer.tag_last_checkpoint = lambda *_: die()
        super().save_checkpoint(name)

    def build_evaluator(self, cfg, name):
        if self.is_due("evaluation"):
            COCOEvaluator.process = ClassificationEvaluator.process = lambda *_: die()
        return super().build_evaluator(cfg, name)

    def test(self, cfg, model):  # the stock one is of the class, which knows no iteration
        class WithEvaluator(Trainer):
            build_evaluator = self.build_evaluator

        return WithEvaluator.test(cfg, model)


def train(output, opts, point=None, at=None, resume=False):
    """Train in a process of its own; returns the signal that ended it, or 0."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] & 0x7F
    try:
        with open(f"{output}.log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        args = default_argument_parser().parse_args(
            [
                *("--config-file", str(ROOT / "configs" / OPTIONS[0])),
                *(["--resume"] if resume else []),
                *(*OPTIONS[1], "OUTPUT_DIR", output, *opts),
            ]
        )
        KilledTrainer.point, KilledTrainer.at = point, at
        cfg = setup(args)
        if cfg.MODEL.DEVICE != "cpu":  # where sums are in any order otherwise
            torch.use_deterministic_algorithms(True, warn_only=True)
        trainer = KilledTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def differences(one, other, name=""):
    """The names of the values in which two checkpoints differ, but for where they were written."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = {*one, *other} - {"config"}
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{name}.{k}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        pairs = enumerate(zip(one, other))
        found = [d for i, (a, b) in pairs for d in differences(a, b, f"{name}.{i}")]
        return found + ([] if len(one) == len(other) else [name])
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if repr(one) == repr(other) else [name]  # NaN is NaN


def evaluations(output):
    """Return the metrics of each evaluation in metrics.json; the last line counts."""
    lines = [json.loads(line) for line in open(f"{output}/metrics.json")]
    found = {}
    for line in lines:
        names = ("bbox/", "cls/", "val_", "ema/")
        values = {k: v for k, v in line.items() if k.startswith(names)}
        if values:
            found[line["iteration"]] = values
    return found


def main():
    from tests.helpers.quick_training import quick_training

    with quick_training():  # the trainings are forked
        compare()


def compare():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--pretraining", action="store_true")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="at each kind of point once")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if args.pretraining:
        OPTIONS[:] = PRETRAINING
    os.chdir(args.folder)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = (
        ":4096:8"  # of a GPU, whose runs have the same bits then
    )
    n = args.iterations
    period = n // 3
    opts = [*args.opts, "SOLVER.MAX_ITER", str(n), "SOLVER.CHECKPOINT_PERIOD", str(period)]
    opts += ["TEST.EVAL_PERIOD", str(period)]
    kills = [
        ("backward", period - 2),  # before there is any checkpoint
        ("evaluation", period - 1),
        ("loader", period),
        ("backward", 2 * period - 2),
        ("half a checkpoint", 2 * period - 1),
        ("checkpoint without its name", 2 * period - 1),
        ("evaluation", 2 * period - 1),
        ("loader", 2 * period),
        ("half a checkpoint", n - 1),
        ("evaluation", n),
    ]
    if args.once:
        kills = [kill for i, kill in enumerate(kills) if kill[0] not in dict(kills[:i])]
    if train("whole", opts):
        sys.exit("the training that was not to be killed was killed")
    for i, (point, at) in enumerate(kills):
        # Another number of workers each time.
        workers = ["DATALOADER.NUM_WORKERS", str(i % 2 * args.workers)]
        if train("killed", [*opts, *workers], point, at, resume=i > 0) != signal.SIGKILL:
            sys.exit(f"{point} at iteration {at}: the training was not killed there")
    if train("killed", opts, resume=True):
        sys.exit("the last training was killed")
    one, other = (
        torch.load(f"{output}/model_final.pth", weights_only=True) for output in ("whole", "killed")
    )
    different = differences(one, other)
    different += differences(evaluations("whole"), evaluations("killed"), "metrics.json")
    with open("whole/best.json") as f, open("killed/best.json") as g:
        different += differences(json.load(f), json.load(g), "best.json")
    leftovers = [name for name in os.listdir("killed") if name.endswith(".tmp")]
    print(json.dumps({"kills": len(kills), "different": different, "leftovers": leftovers}))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
