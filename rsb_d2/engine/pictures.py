"""The pictures of a run: ``curves.png``, and detections next to the ground truth."""

import json
import logging
import math
import os
from itertools import islice
from typing import Any, Callable, Dict, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import inference_context
from matplotlib.figure import Figure
from PIL import Image

from ..data.damaged import without_damaged
from ..data.dataset_dicts import annotation_reason, standardize
from ..data.images import read_image, reads_partial_images
from ..data.loader import evaluated_records
from ..data.mapper import CheckedDatasetMapper
from ..evaluation.results import VALIDATION_PREFIX, Metric, split_metric
from ..files import whole_file
from ..solver.ema import EMA_PREFIX
from ..visualization import (
    MAX_PIXELS,
    class_colors,
    drawn_size,
    image_grid,
    make_plain,
)
from ..visualizer import PlainVisualizer, resized
from .hooks import failures_warned, is_evaluated_now

logger = logging.getLogger(__name__)

# Metrics of evaluations that are drawn, and their kinds.
_KINDS = {"AP": "AP", "AP50": "AP", "AP75": "AP", "mIoU": "IoU", "IoU": "IoU", "PQ": "PQ"}
_ACCURACIES = ("top1", "top5")

_DRAWN_SCORE = 0.5  # minimum score of a detection in a picture
_MAX_SIDE = 1000  # of an image, in pixels; less for many images


class PictureWriter(HookBase):
    """Hook that writes ``curves.png`` after each evaluation, and ``detections.png`` at the end.

    With ``LOGGERS``, it also writes ``detections.png`` after each evaluation.
    A picture that cannot be drawn does not end the training; it is reported in a warning.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg
        self._period = cfg.TEST.EVAL_PERIOD

    def after_step(self):
        if is_evaluated_now(self.trainer, self._period):
            self._draw_curves()
            if self._cfg.LOGGERS:  # which keep the pictures of all evaluations
                self._draw_model()

    def after_train(self):
        if self.trainer.iter + 1 < self.trainer.max_iter and not self.trainer.stopped_early:
            return  # interrupted
        paths = [self._draw_curves()]
        if self._cfg.DATASETS.TEST:
            paths.append(self._draw_model())
        logger.info("Pictures: " + (", ".join(filter(None, paths)) or "none"))

    def _draw_curves(self) -> str | None:
        test_sets = self._cfg.DATASETS.TEST
        return self._draw("curves.png", lambda _: draw_curves(self._cfg.OUTPUT_DIR, test_sets))

    def _draw_model(self) -> str | None:
        """Draw detections in test images, or for another kind of training, its own picture."""
        return self._draw(
            "detections.png", lambda path: draw_detections(self._cfg, self.trainer.model, path)
        )

    def _draw(self, name: str, draw: Callable[[str], Any]) -> str | None:
        """Return the path of the picture; None if it could not be drawn."""
        path = os.path.join(self._cfg.OUTPUT_DIR, name)
        with failures_warned(path):
            draw(path)
            return path
        return None


# ---- curves ----


def read_metrics(output_dir: str) -> Dict[str, Dict[int, float]]:
    """Read the ``metrics.json`` of a run, as Detectron2's ``JSONWriter`` writes it.

    Returns:
        dict[str, dict[int, float]]: the values of each metric by iteration. If an iteration was
        run again after a resume, its last value counts.
    """
    metrics = {}
    with open(os.path.join(output_dir, "metrics.json")) as f:
        for line in f:
            try:
                values = json.loads(line)
                iteration = values.pop("iteration")
            except (ValueError, KeyError):  # a process was killed while writing the line
                continue
            for name, value in values.items():
                metrics.setdefault(name, {})[iteration] = value
    return metrics


def draw_curves(output_dir: str, test_sets: Sequence[str] = ()) -> str:
    """Draw losses, learning rate and AP, IoU, PQ or accuracy by iteration into ``curves.png``."""
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
            # Explicit labels, since matplotlib leaves out names that begin with an underscore.
            labels = [line.get_label() for line in axes.lines]
            axes.legend(
                axes.lines, labels, fontsize="x-small" if many else "small", ncols=2 if many else 1
            )
    path = os.path.join(output_dir, "curves.png")
    make_plain(figure)
    figure.savefig(path, dpi=100)
    return path


def _counterpart(name: str, part: Metric) -> str:
    """Return the metric whose color this one shares: the model's for an EMA, or training's."""
    if part.averaged:
        return name[len(EMA_PREFIX) :]
    return name[len(VALIDATION_PREFIX) :] if part.is_validation_loss else ""


# ---- detections ----


def draw_detections(cfg: CfgNode, model: torch.nn.Module, path: str, num_images: int = 8) -> str:
    """Draw a grid of the first test images: each one's ground truth next to the detections."""
    name = cfg.DATASETS.TEST[0]
    metadata = _drawn_metadata(name)
    mapper = CheckedDatasetMapper(cfg, is_train=False)
    usable = without_damaged(cfg, name, evaluated_records(cfg, name))
    records = [standardize(record) for record in islice(usable, num_images)]
    side = min(_MAX_SIDE, math.isqrt(MAX_PIXELS // (2 * len(records))) - 48)
    titles = ("ground truth", f"detections, score >= {_DRAWN_SCORE}")
    cells = []
    with inference_context(model), torch.no_grad():
        for record in records:
            image = read_image(record["file_name"], "RGB", partial=reads_partial_images(cfg))
            size = drawn_size(*image.shape[:2], side, side)
            inputs = mapper(record)
            # The model returns its output at the size at which it is drawn: masks at the size
            # of large files would take gigabytes.
            inputs["height"], inputs["width"] = size
            output = model([inputs])[0]
            image, record = resized(image, _drawn_record(record, cfg, "sem_seg" in output), size)
            truth = PlainVisualizer(image, metadata).draw_dataset_dict(record)
            found = PlainVisualizer(image, metadata)
            if "sem_seg" in output:
                labels = output["sem_seg"].argmax(dim=0).to("cpu")
                found.draw_sem_seg(labels, area_threshold=0, alpha=0.5)
            if "instances" in output:
                instances = output["instances"].to("cpu")
                found.draw_instance_predictions(instances[instances.scores >= _DRAWN_SCORE])
            pictures = truth.get_image(), found.output.get_image()
            cells += [(p, title, (0, 0, 0)) for p, title in zip(pictures, titles)]
    with whole_file(path) as f:
        Image.fromarray(image_grid(cells, columns=4, group=2)).save(f, "PNG")
    return path


def _drawn_metadata(dataset_name: str) -> Metadata:
    """Return the names of a data set's classes and keypoints, with distinct colors."""
    metadata = MetadataCatalog.get(dataset_name)
    things, stuff = (list(metadata.get(f"{kind}_classes", ())) for kind in ("thing", "stuff"))
    return Metadata(
        thing_classes=things,
        thing_colors=class_colors(len(things)),
        stuff_classes=stuff,
        stuff_colors=metadata.get("stuff_colors") or class_colors(len(stuff)),
        keypoint_names=metadata.get("keypoint_names"),
        keypoint_connection_rules=metadata.get("keypoint_connection_rules"),
    )


def _drawn_record(record: dict, cfg: CfgNode, with_stuff: bool) -> dict:
    """Return the annotations of a record, without masks or keypoints if the model has none."""
    without = [
        *([] if cfg.MODEL.MASK_ON else ["segmentation"]),
        *([] if cfg.MODEL.KEYPOINT_ON else ["keypoints"]),
    ]
    annotations = [a for a in record.get("annotations", ()) if annotation_reason(a) is None]
    drawn = {"annotations": [{k: v for k, v in a.items() if k not in without} for a in annotations]}
    if with_stuff and "sem_seg_file_name" in record:
        drawn["sem_seg"] = read_image(record["sem_seg_file_name"], "L").squeeze(2)
    return drawn
