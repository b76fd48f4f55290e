"""The pictures that a run leaves in its folder."""

from detectron2.config import CfgNode

from ...modeling import is_classifier
from ...pretraining.pictures import ClassificationPictures
from .curves import draw_curves, read_metrics
from .detections import PictureWriter, draw_detections

__all__ = [
    "ClassificationPictures",
    "PictureWriter",
    "build_picture_writer",
    "draw_curves",
    "draw_detections",
    "read_metrics",
]


def build_picture_writer(cfg: CfgNode) -> PictureWriter:
    """Build the hook that draws what goes with a config: of a detector, or of a classifier."""
    return ClassificationPictures(cfg) if is_classifier(cfg) else PictureWriter(cfg)
