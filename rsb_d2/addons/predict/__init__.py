"""Detections on images, folders and videos.

Uses ``addons.storage`` to list tar files.
"""

from .batches import BatchPredictor

__all__ = ["BatchPredictor"]
