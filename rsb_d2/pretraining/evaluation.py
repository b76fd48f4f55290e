"""Accuracy of an image classifier: top-1, top-5, and top-1 per class."""

import json
import logging
import os
from collections import OrderedDict
from typing import Any, Dict, List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..files import whole_file

logger = logging.getLogger(__name__)

_TOP = 5
# With more classes, the accuracy per class is only in the file, not in metrics.json and the log.
MAX_LOGGED_CLASSES = 100


class ClassificationEvaluator(DatasetEvaluator):
    """Counts the images whose class has the highest score, or one of the five highest.

    Args:
        class_names (sequence of str): in the order of the scores.
        output_dir (str): folder for ``classification.json``; ``""`` for none.
    """

    def __init__(self, class_names: Sequence[str], output_dir: str = ""):
        self.class_names = list(class_names)
        self.output_dir = output_dir
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset_name: str, output_folder: str):
        """Build the evaluator of a registered data set, as :func:`build_evaluator` does."""
        return cls(MetadataCatalog.get(dataset_name).thing_classes, output_folder)

    @staticmethod
    def metric_names(cfg: CfgNode, dataset_name: str) -> List[str]:
        """List the metrics of a registered data set, the one that models are compared by first."""
        names = MetadataCatalog.get(dataset_name).thing_classes
        classes = [f"top1-{name}" for name in names] if len(names) <= MAX_LOGGED_CLASSES else []
        return [f"cls/{name}" for name in ("top1", "top5", *classes)]

    def reset(self):
        # Rows, by class: images, those where it is predicted first, those where it is in the top 5.
        self._counts = torch.zeros(3, len(self.class_names), dtype=torch.int64)

    def process(self, inputs: List[Dict[str, Any]], outputs: torch.Tensor) -> None:
        """
        Args:
            inputs (list[dict]): ``label`` of each image.
            outputs (Tensor): (N, classes), scores. Equal scores rank in the order of the classes,
                NaN ranks last.
        """
        labels = torch.tensor([x["label"] for x in inputs])
        scores = outputs.detach().float().cpu().nan_to_num(nan=-torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)
        rank = (order == labels[:, None]).int().argmax(dim=1)
        finite = scores.gather(1, labels[:, None]).squeeze(1) > -torch.inf
        for row, counted in enumerate((rank >= 0, finite & (rank < 1), finite & (rank < _TOP))):
            self._counts[row] += torch.bincount(labels[counted], minlength=len(self.class_names))

    def evaluate(self) -> Dict[str, Dict[str, float]] | None:
        """
        Returns:
            dict or None: ``{"cls": {"top1": ..., "top5": ..., "top1-NAME": ...}}`` in percent of
            the images of all processes, with up to 100 classes by name; None in all but the main
            process. A class without an image has NaN.
        """
        counts = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        images, first, among_five = sum(counts).double()
        of_classes = (100 * first / images).tolist()
        results = OrderedDict(
            top1=float(100 * first.sum() / images.sum()),
            top5=float(100 * among_five.sum() / images.sum()),
        )
        if self.output_dir:
            self._write(results, images, of_classes)
        if len(self.class_names) <= MAX_LOGGED_CLASSES:
            results.update((f"top1-{n}", v) for n, v in zip(self.class_names, of_classes))
        text = ", ".join(f"{name} {value:.2f}" for name, value in results.items())
        logger.info(f"Evaluation on {int(images.sum())} images, in percent: {text}")
        return OrderedDict(cls=results)

    def _write(self, results: Dict[str, float], images: torch.Tensor, top1: List[float]) -> None:
        os.makedirs(self.output_dir, exist_ok=True)
        path = os.path.join(self.output_dir, "classification.json")
        classes = [
            {"name": name, "images": int(count), "top1": value if count else None}
            for name, count, value in zip(self.class_names, images, top1)
        ]
        content = {"images": int(images.sum()), **results, "classes": classes}
        logger.info(f"Accuracy of each class: {path}")
        with whole_file(path) as f:
            f.write((json.dumps(content, indent=1) + "\n").encode())
