"""A small training with ``LOGGERS``, which can be killed.

python logged_training.py DATA KILL_AT [KEY VALUE ...]

It evaluates after each of its six iterations; the AP is the number of iterations. KILL_AT is the
iteration in which the process is killed, or -1; if OUTPUT_DIR has a checkpoint, it is resumed.
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.helpers.quick_training import quick_training
from tests.helpers.runs.scripted_training import ScriptedTrainer, make_config


class LoggedTrainer(ScriptedTrainer):
    kill_at = -1

    def run_step(self):
        if self.iter == self.kill_at:
            time.sleep(1)  # wandb flushes its file now and then
            os.kill(os.getpid(), signal.SIGKILL)
        super().run_step()

    def _evaluate(self):
        ScriptedTrainer.scores = [float(min(self.iter + 1, self.max_iter))]
        return super()._evaluate()


def main():
    data, kill_at, *opts = sys.argv[1:]
    LoggedTrainer.kill_at = int(kill_at)
    with quick_training():
        trainer = LoggedTrainer(make_config(Path(data), "SOLVER.CHECKPOINT_PERIOD", "2", *opts))
        trainer.resume_or_load(resume=True)
        trainer.train()


if __name__ == "__main__":
    main()
