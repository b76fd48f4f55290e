"""The pictures that a run leaves in its folder."""

from .curves import draw_curves, read_metrics
from .detections import PictureWriter, draw_detections

__all__ = ["PictureWriter", "draw_curves", "draw_detections", "read_metrics"]
