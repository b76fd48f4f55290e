"""The pictures of a pretraining: curves, images as the model sees them, and its predictions."""

import logging
import os
from typing import List, Sequence, Tuple

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_context
from torch import nn

from ..engine.pictures.curves import draw_curves
from ..engine.pictures.detections import PictureWriter
from ..utils import unwrap
from .data import build_train_loader
from .data.timm_dataset import sources
from .data.transforms import ClassificationMapper, build_transform

logger = logging.getLogger(__name__)

_CELL = 128  # pixels of an image in a grid
_COLUMNS = 8
_RIGHT, _WRONG, _BLACK = (0, 128, 0), (192, 0, 0), (0, 0, 0)
# A class of a smaller share is not named below a mixed image.
_NAMED_SHARE = 0.01

Cell = Tuple[np.ndarray, str, Tuple[int, int, int]]  # image, text below it, and its colour


class ClassificationPictures(PictureWriter):
    """Writes ``training_images.png`` at the beginning, ``predictions.png`` at the end, and curves.

    Args:
        cfg (CfgNode): of an image classifier.
    """

    def before_train(self):
        path = os.path.join(self._cfg.OUTPUT_DIR, "training_images.png")
        draw_training_images(self._cfg, self.trainer.model, path)
        logger.info(f"Training images as the model sees them: {path}")

    def _draw_at_end(self) -> List[str]:
        paths = [draw_curves(self._cfg.OUTPUT_DIR, self._cfg.DATASETS.TEST)]
        if self._cfg.DATASETS.TEST:
            path = os.path.join(self._cfg.OUTPUT_DIR, "predictions.png")
            paths.append(draw_predictions(self._cfg, self.trainer.model, path))
        return paths


def draw_training_images(cfg: CfgNode, model: nn.Module, path: str, num_images: int = 32) -> str:
    """Draw a grid of the first images of a training, augmented and mixed as the model sees them.

    Args:
        cfg (CfgNode): of an image classifier.
        model (nn.Module): an :class:`rsb_d2.modeling.ImageClassifier`, perhaps distributed.
        path (str): of the picture to write.
        num_images (int): even; of a batch that is mixed, half from its front and half from its
            back, the partners of those.

    Returns:
        str: ``path``.
    """
    model = unwrap(model)
    batch = build_train_loader(cfg).first_images(num_images)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    with torch.no_grad():
        images, targets = model.mix(model.normalise(batch), batch)
    pictures = images * model.pixel_std + model.pixel_mean
    cells = []
    for picture, target in zip(pictures, targets):
        if target.dim():
            shares, classes = target.sort(descending=True)
            pairs = [(s, c) for s, c in zip(shares.tolist(), classes.tolist()) if s > _NAMED_SHARE]
            text = ", ".join(f"{names[c]} {s:.2f}" for s, c in pairs[:2])
        else:
            text = names[int(target)]
        cells.append((_to_rgb(picture), text, _BLACK))
    return _write_grid(cells, path)


def draw_predictions(cfg: CfgNode, model: nn.Module, path: str, num_images: int = 32) -> str:
    """Draw a grid of test images, each with its class and with what the model says.

    Args:
        cfg (CfgNode): the images are spread evenly over ``DATASETS.TEST[0]``.
        model (nn.Module): an image classifier.
        path (str): of the picture to write.
        num_images (int): how many images.

    Returns:
        str: ``path``.
    """
    model = unwrap(model)
    name = cfg.DATASETS.TEST[0]
    names, records = MetadataCatalog.get(name).thing_classes, DatasetCatalog.get(name)
    chosen = np.linspace(0, len(records) - 1, min(num_images, len(records))).round().astype(int)
    mapper = ClassificationMapper(build_transform(cfg, is_train=False), sources([name]))
    batch = [mapper(records[i]) for i in chosen]
    with inference_context(model), torch.no_grad():
        found = model(batch).argmax(dim=1).tolist()
    cells = []
    for image, label in zip(batch, found):
        truth = names[image["label"]]
        right = label == image["label"]
        text = truth if right else f"{names[label]}, is {truth}"
        cells.append((_to_rgb(image["image"]), text, _RIGHT if right else _WRONG))
    return _write_grid(cells, path)


def _to_rgb(image: torch.Tensor) -> np.ndarray:
    image = image.float().clamp(0, 255).round().byte().cpu().permute(1, 2, 0).numpy()
    return cv2.resize(image, (_CELL, _CELL), interpolation=cv2.INTER_LINEAR)


def _write_grid(cells: Sequence[Cell], path: str, margin: int = 6, text_height: int = 18) -> str:
    rows, height, width = -(-len(cells) // _COLUMNS), _CELL + text_height + margin, _CELL + margin
    columns = min(_COLUMNS, len(cells))
    grid = np.full((rows * height + margin, columns * width + margin, 3), 255, np.uint8)
    for i, (image, text, colour) in enumerate(cells):
        top = i // _COLUMNS * height + margin
        left = i % _COLUMNS * width + margin
        grid[top : top + _CELL, left : left + _CELL] = image
        text = text.encode("ascii", "replace").decode()  # OpenCV's font has no other letters
        scale = min(0.42, 0.42 * _CELL / max(1, cv2.getTextSize(text, 0, 0.42, 1)[0][0]))
        at = (left, top + _CELL + 13)
        cv2.putText(grid, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)
    cv2.imwrite(path, grid[:, :, ::-1])
    return path
