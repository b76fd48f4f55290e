"""The curves of a run: losses, learning rate, and what its evaluations gave."""

import json
import os
from typing import Dict

from matplotlib.figure import Figure

# Of the evaluations of detectors.
_FIGURES = ("/AP", "/AP50", "/AP75", "/mIoU", "/IoU", "/PQ")


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
            values = json.loads(line)
            iteration = values.pop("iteration", None)
            for name, value in values.items():
                metrics.setdefault(name, {})[iteration] = value
    return metrics


def draw_curves(output_dir: str) -> str:
    """Draw losses, learning rate and AP, IoU, PQ or accuracy by iteration into ``curves.png``.

    Args:
        output_dir (str): the folder of ``metrics.json``.

    Returns:
        str: path of the picture.
    """
    metrics = read_metrics(output_dir)
    losses = sorted(name for name in metrics if "loss" in name)
    aps = sorted(name for name in metrics if name.endswith(_FIGURES))
    kinds = sorted({kind for kind in ("AP", "IoU", "PQ") for name in aps if kind in name}) or ["AP"]
    accuracies = sorted(name for name in metrics if name.endswith(("/top1", "/top5")))
    panels = [
        ("loss", losses),
        ("learning rate", ["lr"]),
        ("accuracy (%)", accuracies) if accuracies else (f"{', '.join(kinds)} (%)", aps),
    ]
    figure = Figure(figsize=(15, 4), layout="constrained")
    for axes, (label, names) in zip(figure.subplots(1, len(panels)), panels):
        for name in names:
            points = sorted(metrics.get(name, {}).items())
            marked = name in (*aps, *accuracies) or "val_" in name
            style = {"marker": "o"} if marked else {}
            if name[4:] in names:  # "val_" or "ema/" before it: in the colour of that
                style.update(linestyle="--", color=f"C{names.index(name[4:])}")
            axes.plot(*zip(*points), label=name, linewidth=1.5, **style) if points else None
        axes.set_xlabel("iteration")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0, top=100 if label.endswith("(%)") else None)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            many = len(names) > 6
            axes.legend(fontsize="x-small" if many else "small", ncols=2 if many else 1)
    path = os.path.join(output_dir, "curves.png")
    figure.savefig(path, dpi=100)
    return path
