#!/usr/bin/env python
"""Make sample data, pretrain a ResNet-50 on it, then train and evaluate a Faster R-CNN.

Runs and prints three commands. Without a GPU, and if the processor does not support bfloat16, the
pretraining is shorter.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import torch  # noqa: E402

from rsb_d2.engine.train_step import cpu_has_bfloat16  # noqa: E402

DATA = ["tools/sample_data.py"]
WEIGHTS = "output/resnet50_rsb_sample/model_final.pth"
DETECTOR = ["configs/frcnn_rsb_sample.yaml", "MODEL.WEIGHTS", WEIGHTS]
# In float32 an iteration takes about twice as long: fewer iterations, evaluated only at the end.
SHORTER = ["SOLVER.MAX_ITER", "80", "TEST.EVAL_PERIOD", "80"]
AT_THE_END = ["TEST.EVAL_PERIOD", "480"]


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    pretraining, detector = ["configs/pretrain/resnet50_rsb_sample.yaml"], DETECTOR
    if not (torch.cuda.is_available() or cpu_has_bfloat16()):
        print(
            "This processor does not compute in bfloat16: 80 iterations of pretraining in float32 "
            "instead of 300.",
            flush=True,
        )
        pretraining, detector = pretraining + SHORTER, detector + AT_THE_END
    trainings = [["train_net.py", "--config-file", *words] for words in (pretraining, detector)]
    for command in (DATA, *trainings):
        print(f"\n=== {shlex.join(['python', *command])}\n", flush=True)
        start = time.monotonic()
        status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
        if status:
            return status
        print(f"\n=== done in {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
