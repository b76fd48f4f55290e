"""Make sample data, pretrain a ResNet-50, train and evaluate a Faster R-CNN.

Runs and prints three commands; the data goes to datasets/ and the trainings to output/ in the
current folder. Without a GPU, and if the processor does not support bfloat16, the pretraining is
shorter.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time

WEIGHTS = "output/resnet50_rsb_sample/model_final.pth"
# In float32 an iteration takes about twice as long: fewer iterations, evaluated only at the end.
SHORTER = ["SOLVER.MAX_ITER", "80", "TEST.EVAL_PERIOD", "80"]
AT_THE_END = ["TEST.EVAL_PERIOD", "480"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    rsb_d2.register_all()
    import torch

    import rsb_d2_cli

    from ...engine.train_step import cpu_has_bfloat16

    pretraining = ["pretrain/resnet50_rsb_sample"]
    detector = ["frcnn_rsb_sample", "MODEL.WEIGHTS", WEIGHTS]
    if not (torch.cuda.is_available() or cpu_has_bfloat16()):
        print(
            "This processor does not compute in bfloat16: 80 iterations of pretraining in float32 "
            "instead of 300.",
            flush=True,
        )
        pretraining, detector = pretraining + SHORTER, detector + AT_THE_END
    trainings = [["train", "--config-file", *words] for words in (pretraining, detector)]
    for command in (["sample-data"], *trainings):
        print(f"\n=== {shlex.join(['rsb-d2', *command])}\n", flush=True)
        start = time.monotonic()
        program = os.path.abspath(rsb_d2_cli.__file__)
        status = subprocess.run([sys.executable, program, *command]).returncode
        if status:
            return status
        print(f"\n=== done in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    return 0
