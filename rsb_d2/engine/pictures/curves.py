"""The curves of a run: losses, learning rate, and what its evaluations gave."""

import json
import os
from typing import Dict, Sequence

from matplotlib.figure import Figure

from ...evaluation.results import VALIDATION_PREFIX, Metric, split_metric
from ...solver.ema import EMA_PREFIX
from ...visualization import make_plain

# Those that are drawn of the evaluations of detectors and of classifiers, and their kinds.
_KINDS = {"AP": "AP", "AP50": "AP", "AP75": "AP", "mIoU": "IoU", "IoU": "IoU", "PQ": "PQ"}
_ACCURACIES = ("top1", "top5")


def read_metrics(output_dir: str) -> Dict[str, Dict[int, float]]:
    """Read what Detectron2's ``JSONWriter`` wrote.

    Args:
        output_dir (str): the folder of ``metrics.json``.

    Returns:
        dict[str, dict[int, float]]: of each scalar, its value by iteration. Of an iteration that
        was run again after a resume, the last value counts.
    """
    metrics = {}
    with open(os.path.join(output_dir, "metrics.json")) as f:
        for line in f:
            try:
                values = json.loads(line)
                iteration = values.pop("iteration")
            except (ValueError, KeyError):  # a process was killed while it wrote the line
                continue
            for name, value in values.items():
                metrics.setdefault(name, {})[iteration] = value
    return metrics


def draw_curves(output_dir: str, test_sets: Sequence[str] = ()) -> str:
    """Draw losses, learning rate and AP, IoU, PQ or accuracy by iteration into ``curves.png``.

    Args:
        output_dir (str): the folder of ``metrics.json``.
        test_sets (sequence of str): ``DATASETS.TEST`` of the run.

    Returns:
        str: path of the picture.
    """
    metrics = read_metrics(output_dir)
    parts = {name: split_metric(name, test_sets) for name in sorted(metrics)}
    losses = [name for name, part in parts.items() if part.is_loss]
    evaluated = {name: part.figure for name, part in parts.items() if part.task}
    aps = [name for name, figure in evaluated.items() if figure in _KINDS]
    kinds = sorted({_KINDS[evaluated[name]] for name in aps}) or ["AP"]
    accuracies = [name for name, figure in evaluated.items() if figure in _ACCURACIES]
    panels = [
        ("loss", losses),
        ("learning rate", ["lr"]),
        ("accuracy (%)", accuracies) if accuracies else (f"{', '.join(kinds)} (%)", aps),
    ]
    figure = Figure(figsize=(15, 4), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels)), panels):
        for name in names:
            points = sorted(metrics.get(name, {}).items())
            if not points:
                continue
            style = {}
            if name in evaluated or parts[name].is_validation_loss:
                style["marker"] = "o"
            counterpart = _counterpart(name, parts[name])
            if counterpart in names:
                style.update(linestyle="--", color=f"C{names.index(counterpart)}")
            axes.plot(*zip(*points), label=name, linewidth=1.5, **style)
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0, top=100 if label.endswith("(%)") else None)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            many = len(names) > 6
            # By name, as matplotlib leaves out those that begin with an underscore.
            labels = [line.get_label() for line in axes.lines]
            axes.legend(
                axes.lines, labels, fontsize="x-small" if many else "small", ncols=2 if many else 1
            )
    path = os.path.join(output_dir, "curves.png")
    make_plain(figure)
    figure.savefig(path, dpi=100)
    return path


def _counterpart(name: str, part: Metric) -> str:
    """The metric of which this one is drawn in the color: of the model, or of training."""
    if part.averaged:
        return name[len(EMA_PREFIX) :]
    return name[len(VALIDATION_PREFIX) :] if part.is_validation_loss else ""
