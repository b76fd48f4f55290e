"""The pictures of a detector's training: its detections beside the ground truth, and curves."""

import logging
import math
import os
from typing import Any, Callable

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import inference_context
from PIL import Image

from ...data.dataset_dicts import annotation_reason, first_dicts
from ...data.images import CheckedDatasetMapper, read_image
from ...files import whole_file
from ...visualization import (
    MAX_PIXELS,
    PlainVisualizer,
    class_colors,
    drawn_size,
    image_grid,
    resized,
)
from ..checkpoints import failures_warned
from ..validation import is_evaluated_now
from .curves import draw_curves

logger = logging.getLogger(__name__)

# Detections below this score are not drawn.
DRAWN_SCORE = 0.5

# Of an image, in pixels; less if there are more of them than the picture has pixels for.
_MAX_SIDE = 1000


class PictureWriter(HookBase):
    """Writes ``curves.png`` after each evaluation, and with ``detections.png`` at the end.

    A picture that cannot be drawn does not end the training: a warning says so.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg (CfgNode): its ``OUTPUT_DIR``, ``TEST.EVAL_PERIOD``, ``DATASETS.TEST``.
        """
        self._cfg = cfg
        self._period = cfg.TEST.EVAL_PERIOD

    def after_step(self):
        if is_evaluated_now(self.trainer, self._period):
            self._draw_curves()

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
        """Draw what the model finds in test images."""
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


def draw_detections(cfg: CfgNode, model: torch.nn.Module, path: str, num_images: int = 8) -> str:
    """Draw a grid of test images, each with its ground truth beside the model's detections.

    Args:
        cfg (CfgNode): the images are the first of ``DATASETS.TEST[0]``.
        model (nn.Module): a detector.
        path (str): of the picture to write.
        num_images (int): how many images.

    Returns:
        str: ``path``.
    """
    name = cfg.DATASETS.TEST[0]
    metadata = _drawn_metadata(name)
    mapper = CheckedDatasetMapper(cfg, is_train=False)
    records = first_dicts(name, num_images)
    side = min(_MAX_SIDE, math.isqrt(MAX_PIXELS // (2 * len(records))) - 48)
    titles = ("ground truth", f"detections, score >= {DRAWN_SCORE}")
    cells = []
    with inference_context(model), torch.no_grad():
        for record in records:
            image = read_image(record["file_name"], "RGB")
            size = drawn_size(*image.shape[:2], side, side)
            inputs = mapper(record)
            # The model gives its output for this size, not for that of the file.
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
                found.draw_instance_predictions(instances[instances.scores >= DRAWN_SCORE])
            pictures = truth.get_image(), found.output.get_image()
            cells += [(p, title, (0, 0, 0)) for p, title in zip(pictures, titles)]
    with whole_file(path) as f:
        Image.fromarray(image_grid(cells, columns=4, group=2)).save(f, "PNG")
    return path


def _drawn_metadata(dataset_name: str) -> Metadata:
    """The names of a data set's classes and keypoints, with colours that differ."""
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
    """The annotations of a record, without what the model does not predict."""
    without = [
        *([] if cfg.MODEL.MASK_ON else ["segmentation"]),
        *([] if cfg.MODEL.KEYPOINT_ON else ["keypoints"]),
    ]
    annotations = [a for a in record.get("annotations", ()) if annotation_reason(a) is None]
    drawn = {"annotations": [{k: v for k, v in a.items() if k not in without} for a in annotations]}
    if with_stuff and "sem_seg_file_name" in record:
        drawn["sem_seg"] = read_image(record["sem_seg_file_name"], "L").squeeze(2)
    return drawn
