#!/usr/bin/env python
"""The claim of "ResNet strikes back" in miniature: does the procedure improve a detector?

tools/miniature.py
tools/miniature.py --seeds 1 --starts nothing a3 --iterations 60 --pretrain-iterations 60

Trains the sample detector with one short schedule from random weights, from a ResNet-50 that was
trained on the sample's classes with a plain procedure of 2015, and from one trained with A3's
ingredients: same images, same iterations, several seeds. The learning rate of the 2015 procedure is
the best of --rates, by top-1 and then by the loss on val, with a separate seed; that of A3 is the
config's.

train_net.py does all the work. Results are stored in OUTPUT/miniature.json, one row per start and
seed, so the program can be stopped at any time and continues when it is called again. It prints a
Markdown table and draws OUTPUT/miniature.png. The exit status is 0, or 2 for a mistake on the
command line, or that of a failed training.
"""

import argparse
import glob
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from os.path import expanduser
from typing import Any, Dict, List

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors
from matplotlib.figure import Figure

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from rsb_d2.engine.pictures import read_metrics
from rsb_d2.files import whole_file

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DETECTOR = "configs/frcnn_rsb_sample.yaml"
# Config of each start; NAMES has the names for the table.
PRETRAINING = {
    "nothing": "",
    "2015": "configs/pretrain/resnet50_2015_sample.yaml",
    "a3": "configs/pretrain/resnet50_rsb_sample.yaml",
}
NAMES = {"nothing": "nothing", "2015": "SGD, cross-entropy, steps (2015)", "a3": "A3's ingredients"}
TUNING_SEED = 0  # for choosing the learning rate; not one of the compared seeds
FIGURES = {"AP": "bbox/AP", "AP50": "bbox/AP50"}

Row = Dict[str, Any]


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--output",
        type=expanduser,
        default="output/miniature",
        help="output folder (output/miniature)",
    )
    parser.add_argument(
        "--iterations", type=int, default=300, help="iterations of the detector (300)"
    )
    parser.add_argument(
        "--pretrain-iterations", type=int, default=200, help="iterations of the pretraining (200)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds to compare (1 2 3)"
    )
    parser.add_argument("--starts", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[0.025, 0.05, 0.1],
        help="learning rates to try for 2015",
    )
    parser.add_argument("--table", action="store_true", help="print the existing results only")
    args = parser.parse_args()
    for name in ("iterations", "pretrain_iterations"):
        if getattr(args, name) < 3:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; write 3 or more")
    if any(seed <= TUNING_SEED for seed in args.seeds):
        parser.error(f"--seeds are 1 or more; {TUNING_SEED} is that of the rates")
    if any(rate <= 0 for rate in args.rates):
        parser.error("--rates are above 0")
    return args


class TrainingFailed(Exception):
    """A failed training; the argument is its exit status."""


def train(config: str, output: str, options: List[str]) -> None:
    """Run train_net.py, or resume an interrupted run of it."""
    command = ["train_net.py", "--config-file", config, "--resume", "OUTPUT_DIR", output, *options]
    print(f"\n=== {shlex.join(['python', *command])}\n", flush=True)
    status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if status:
        raise TrainingFailed(status)


class Miniature:
    """The experiment, with its completed and remaining trainings.

    Args:
        args (Namespace): from :func:`parse_args`.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = os.path.abspath(args.output)
        self.path = os.path.join(self.folder, "miniature.json")
        settings = {"iterations": args.iterations, "pretrain_iterations": args.pretrain_iterations}
        self.state: Dict[str, Any] = {"settings": settings, "rates": [], "rows": []}
        if os.path.exists(self.path):
            with open(self.path) as f:
                self.state = json.load(f)
            if self.state["settings"] != settings:
                was = ", ".join(f"{k} {v}" for k, v in self.state["settings"].items())
                raise UserError(f"{args.output} is of {was}; write these, or another --output")

    def rows(self, start: str) -> List[Row]:
        """Return the completed rows of a start, in the order of the seeds."""
        rows = [row for row in self.state["rows"] if row["start"] == start]
        return sorted(rows, key=lambda row: row["seed"])

    def run(self) -> None:
        """Run the remaining trainings, one seed at a time."""
        for seed in self.args.seeds:
            for start in self.args.starts:
                if seed not in [row["seed"] for row in self.rows(start)]:
                    self.state["rows"].append(self._run_one(start, seed))
                    self._save()

    def _run_one(self, start: str, seed: int) -> Row:
        row: Row = {"start": start, "seed": seed}
        weights = ""
        if start != "nothing":
            rate = self._best_rate() if start == "2015" else None
            folder = self._pretrain(start, seed, rate)
            weights = os.path.join(folder, "model_final.pth")
            row.update(rate=rate, top1=last(folder, "cls/top1"))
        folder = os.path.join(self.folder, f"detector_{start}_{seed}")
        iterations, began = self.args.iterations, time.monotonic()
        keep = load_config(os.path.join(ROOT, DETECTOR), [])
        warmup = round(keep.SOLVER.WARMUP_ITERS * iterations / keep.SOLVER.MAX_ITER)
        train(
            DETECTOR,
            folder,
            [
                *("MODEL.WEIGHTS", weights, "SEED", str(seed)),
                *("SOLVER.MAX_ITER", str(iterations), "SOLVER.WARMUP_ITERS", str(warmup)),
                *("SOLVER.CHECKPOINT_PERIOD", str(iterations // 2), "SOLVER.CHECKPOINT_KEEP", "1"),
                *("SOLVER.BEST_METRIC", "", "TEST.EVAL_PERIOD", str(iterations // 2)),
            ],
        )
        metrics = read_metrics(folder)
        for name, metric in FIGURES.items():
            row[name] = last(folder, metric)
            row[f"{name} half way"] = metrics[metric][min(metrics[metric])]
        row["seconds"] = round(time.monotonic() - began)
        remove_checkpoints(folder, but="model_final.pth")
        return row

    def _pretrain(self, start: str, seed: int, rate: float | None) -> str:
        """Train a backbone, unless it is already trained, and return its folder."""
        name = f"pretraining_{start}_{seed}" + (f"_{rate:g}" if seed == TUNING_SEED else "")
        folder = os.path.join(self.folder, name)
        if os.path.exists(os.path.join(folder, "model_final.pth")):
            return folder
        config, iterations = PRETRAINING[start], self.args.pretrain_iterations
        solver = load_config(os.path.join(ROOT, config), []).SOLVER
        scale = iterations / solver.MAX_ITER
        options = [
            *("SEED", str(seed), "SOLVER.MAX_ITER", str(iterations)),
            *("SOLVER.WARMUP_ITERS", str(round(scale * solver.WARMUP_ITERS))),
            *("SOLVER.CHECKPOINT_KEEP", "1", "TEST.EVAL_PERIOD", str(iterations)),
            *("SOLVER.BEST_METRIC", "", "TEST.VAL_LOSS", "True"),
        ]
        if start == "2015":
            steps = tuple(round(scale * step) for step in solver.STEPS)
            options += ["SOLVER.STEPS", str(steps), "SOLVER.BASE_LR", str(rate)]
        train(config, folder, options)
        remove_checkpoints(folder, but="model_final.pth")
        return folder

    def _best_rate(self) -> float:
        tried = self.state["rates"]
        for rate in self.args.rates:
            if rate not in [t["rate"] for t in tried]:
                folder = self._pretrain("2015", TUNING_SEED, rate)
                figures = last(folder, "cls/top1"), last(folder, "val_total_loss")
                tried.append({"rate": rate, "top1": figures[0], "val_loss": figures[1]})
                self._save()
        of_these = [t for t in tried if t["rate"] in self.args.rates]
        return max(of_these, key=lambda t: (t["top1"], -t["val_loss"]))["rate"]

    def _save(self) -> None:
        os.makedirs(self.folder, exist_ok=True)
        with whole_file(self.path) as f:
            f.write(json.dumps(self.state, indent=1).encode())


def last(folder: str, metric: str) -> float:
    """Return the last value of a metric of a run."""
    values = read_metrics(folder).get(metric)
    if not values:
        raise UserError(f"{folder}/metrics.json has no {metric}; remove the folder")
    return values[max(values)]


def remove_checkpoints(folder: str, but: str) -> None:
    """Remove the checkpoints of a completed run, which take 200 to 500 MB each."""
    for path in glob.glob(os.path.join(glob.escape(folder), "*.pth")):
        if os.path.basename(path) != but:
            os.remove(path)


def format_table(miniature: Miniature) -> str:
    """Format means over the seeds, with the lowest and highest values, as a Markdown table."""
    columns = ["AP", "AP50", "AP half way", "AP50 half way", "top1"]
    heads = ["AP", "AP50", "AP half way", "AP50 half way", "top-1 of the pretraining"]
    lines = [f"| start | seeds | {' | '.join(heads)} |", "| --- " * (len(heads) + 2) + "|"]
    for start, name in NAMES.items():
        rows = miniature.rows(start)
        if rows:
            cells = [name, str(len(rows)), *(spread([r.get(c) for r in rows]) for c in columns)]
            lines.append(f"| {' | '.join(cells)} |")
    for tried in miniature.state["rates"]:
        lines += [] if tried is not miniature.state["rates"][0] else ["", "Rates of 2015:"]
        lines.append("- {rate:g}: top-1 {top1:.1f}, loss on val {val_loss:.4f}".format(**tried))
    return "\n".join(lines)


def spread(values: List[float | None]) -> str:
    """Format values as ``mean (lowest-highest)``; ``""`` without any."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{statistics.fmean(known):.1f} ({min(known):.1f}-{max(known):.1f})"


def draw(miniature: Miniature) -> str:
    """Draw the AP of each seed and the means, half way and at the end, and return the path."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    done = [start for start in NAMES if miniature.rows(start)]
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("AP half way", "AP")):
        for place, start in enumerate(done):
            values = [row[name] for row in miniature.rows(start)]
            axes.bar(
                place, statistics.fmean(values), color=f"C{list(NAMES).index(start)}", alpha=0.5
            )
            axes.plot([place] * len(values), values, "k.")
        axes.set_xticks(range(len(done)), done)
        axes.set_title(f"{name}; one dot per seed", fontsize=10)
        axes.grid(axis="y", alpha=0.3)
    path = os.path.join(miniature.folder, "miniature.png")
    figure.savefig(path, dpi=100)
    return path


@report_user_errors
def main() -> int:
    args = parse_args()
    miniature = Miniature(args)
    try:
        if not args.table:
            miniature.run()
    except TrainingFailed as e:
        return e.args[0]
    if not miniature.state["rows"]:
        raise UserError(f"{args.output} has no row yet")
    print(f"\n{format_table(miniature)}\n\n{draw(miniature)}, {miniature.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
