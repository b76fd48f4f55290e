"""The pictures of a detector's training: its detections beside the ground truth, and curves."""

import logging
import os
from typing import List

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import inference_context
from detectron2.utils.visualizer import ColorMode, Visualizer

from ...data.images import CheckedDatasetMapper, read_image
from ...visualization import class_colors, readable_scale
from ..validation import is_evaluated_now
from .curves import draw_curves

logger = logging.getLogger(__name__)

# Detections below this score are not drawn.
DRAWN_SCORE = 0.5


class PictureWriter(HookBase):
    """Writes ``curves.png`` after each evaluation, and with ``detections.png`` at the end."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg (CfgNode): its ``OUTPUT_DIR``, ``TEST.EVAL_PERIOD``, ``DATASETS.TEST``.
        """
        self._cfg = cfg
        self._period = cfg.TEST.EVAL_PERIOD

    def after_step(self):
        if is_evaluated_now(self.trainer, self._period):
            draw_curves(self._cfg.OUTPUT_DIR, self._cfg.DATASETS.TEST)

    def after_train(self):
        if self.trainer.iter + 1 < self.trainer.max_iter and not self.trainer.stopped_early:
            return  # interrupted
        logger.info("Pictures: " + ", ".join(self._draw_at_end()))

    def _draw_at_end(self) -> List[str]:
        paths = [draw_curves(self._cfg.OUTPUT_DIR, self._cfg.DATASETS.TEST)]
        if self._cfg.DATASETS.TEST:
            path = os.path.join(self._cfg.OUTPUT_DIR, "detections.png")
            paths.append(draw_detections(self._cfg, self.trainer.model, path))
        return paths


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
    pairs = []
    with inference_context(model), torch.no_grad():
        for record in DatasetCatalog.get(name)[:num_images]:
            image = read_image(record["file_name"], "RGB")
            output = model([mapper(record)])[0]
            record = _drawn_record(record, cfg.MODEL.MASK_ON, with_stuff="sem_seg" in output)
            # In this mode an object has the colour of its class, but for a little noise.
            options = dict(scale=readable_scale(image), instance_mode=ColorMode.SEGMENTATION)
            truth = Visualizer(image, metadata, **options).draw_dataset_dict(record)
            found = Visualizer(image, metadata, **options)
            if "sem_seg" in output:
                labels = output["sem_seg"].argmax(dim=0).to("cpu")
                found.draw_sem_seg(labels, area_threshold=0, alpha=0.5)
            if "instances" in output:
                instances = output["instances"].to("cpu")
                found.draw_instance_predictions(instances[instances.scores >= DRAWN_SCORE])
            pairs.append((truth.get_image(), found.output.get_image()))
    cv2.imwrite(path, _grid(pairs)[:, :, ::-1])
    return path


def _drawn_metadata(dataset_name: str) -> Metadata:
    """The names of a data set's classes, with colours that differ."""
    metadata = MetadataCatalog.get(dataset_name)
    things, stuff = (list(metadata.get(f"{kind}_classes", ())) for kind in ("thing", "stuff"))
    return Metadata(
        thing_classes=things,
        thing_colors=class_colors(len(things)),
        stuff_classes=stuff,
        stuff_colors=metadata.get("stuff_colors") or class_colors(len(stuff)),
    )


def _drawn_record(record: dict, with_masks: bool, with_stuff: bool) -> dict:
    """A record of a data set with what the model predicts alone."""
    drawn = {k: v for k, v in record.items() if k not in ("pan_seg_file_name", "segments_info")}
    if not with_stuff:
        drawn.pop("sem_seg_file_name", None)
    if not with_masks and "annotations" in drawn:
        drawn["annotations"] = [
            {k: v for k, v in a.items() if k != "segmentation"} for a in drawn["annotations"]
        ]
    return drawn


def _grid(pairs: List[tuple], columns: int = 2, margin: int = 8) -> np.ndarray:
    """Lay out pairs of RGB images on white, with a title above each."""
    title_height = 28
    height = max(image.shape[0] for pair in pairs for image in pair)
    width = max(image.shape[1] for pair in pairs for image in pair)
    rows = -(-len(pairs) // columns)
    cell_height, cell_width = height + title_height + margin, 2 * (width + margin) + margin
    grid = np.full((rows * cell_height + margin, columns * cell_width, 3), 255, np.uint8)
    for i, pair in enumerate(pairs):
        top = (i // columns) * cell_height + margin
        left = (i % columns) * cell_width + margin
        for title, image in zip(("ground truth", f"detections, score >= {DRAWN_SCORE}"), pair):
            cv2.putText(
                grid,
                title,
                (left, top + 19),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.55,
                (0, 0, 0),
                1,
                cv2.LINE_AA,
            )
            h, w = image.shape[:2]
            grid[top + title_height : top + title_height + h, left : left + w] = image
            left += width + margin
    return grid
