"""Pictures of a pretraining: curves, training images as the model sees them, and predictions."""

import logging
from typing import Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_context
from PIL import Image
from torch import nn

from ..engine.pictures import PictureWriter
from ..files import whole_file
from ..utils import unwrap
from ..visualization import Cell, image_grid
from .data import build_train_loader
from .data.loading import ClassificationMapper, build_transform
from .data.timm_datasets import sources

logger = logging.getLogger(__name__)

_CELL = 128  # pixels of an image in a grid
_COLUMNS = 8
_RIGHT, _WRONG, _BLACK = (0, 128, 0), (192, 0, 0), (0, 0, 0)
# Classes with a smaller share are not named below a mixed image.
_NAMED_SHARE = 0.01


class ClassificationPictures(PictureWriter):
    """Writes ``training_images.png`` at the start, ``predictions.png`` at the end, and curves."""

    def before_train(self):
        model = self.trainer.model
        path = self._draw(
            "training_images.png", lambda path: draw_training_images(self._cfg, model, path)
        )
        if path:
            logger.info(f"Training images as the model sees them: {path}")

    def _draw_model(self) -> str | None:
        model = self.trainer.model
        return self._draw("predictions.png", lambda path: draw_predictions(self._cfg, model, path))


def draw_training_images(cfg: CfgNode, model: nn.Module, path: str, num_images: int = 32) -> str:
    """Draw a grid of the first images of a training, augmented and mixed as the model sees them.

    ``num_images`` is even: of a mixed batch, half are from its start and half are their partners,
    from its end.
    """
    model = unwrap(model)
    batch = build_train_loader(cfg).first_images(num_images)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    with torch.no_grad():
        images, targets = model.mix(model.normalize(batch), batch)
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
    """Draw a grid of test images, spread evenly, each with its class and the model's prediction."""
    model = unwrap(model)
    name = cfg.DATASETS.TEST[0]
    names, records = MetadataCatalog.get(name).thing_classes, DatasetCatalog.get(name)
    if not records:
        raise ValueError(f"the data set {name} has no images")
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


def _write_grid(cells: Sequence[Cell], path: str) -> str:
    grid = image_grid(cells, _COLUMNS, margin=6, text_size=11, text_below=True)
    with whole_file(path) as f:
        Image.fromarray(grid).save(f, "PNG")
    return path
