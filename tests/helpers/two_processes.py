"""The program of each process in the tests of several processes."""

import json
import os
import signal
from pathlib import Path

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from rsb_d2 import Trainer
from rsb_d2.config.setup import setup
from rsb_d2.engine import launch

ROOT = Path(__file__).resolve().parents[2]


class RecordingTrainer(Trainer):
    """A trainer that records the images of its process, and kills it at a given iteration."""

    # From the environment, because spawned processes import this file again.
    die_at = int(os.environ.get("DIE_AT", -1))

    def run_step(self):
        if self.iter == self.die_at and comm.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().run_step()
        path = Path(self.cfg.OUTPUT_DIR) / f"images.{comm.get_rank()}"
        names = [os.path.basename(name) for name in self.data_loader.last_files]
        with open(path, "a") as f:
            f.write(json.dumps([self.iter, names]) + "\n")


def main(args):
    trainer = RecordingTrainer(setup(args))
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
