"""Detectron2's visualizer with literal text, and images and annotations resized for it."""

from typing import Any, Dict, Tuple

import cv2
import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import ColorMode, Visualizer
from pycocotools import mask as mask_util

from .visualization import MAX_LABELS, drawable, make_text_plain


class PlainVisualizer(Visualizer):
    """Detectron2's visualizer with literal text, and with exactly the colors of the classes.

    Images with many objects get no labels. :func:`resized` makes the input.
    """

    def __init__(self, image: np.ndarray, metadata: Any):
        super().__init__(image, metadata, instance_mode=ColorMode.SEGMENTATION)

    def overlay_instances(self, *, labels=None, **kwargs):
        if labels is not None and len(labels) > MAX_LABELS:
            labels = None
        return super().overlay_instances(labels=labels, **kwargs)

    def draw_text(self, text, position, **kwargs):
        output = super().draw_text("", position, **kwargs)
        make_text_plain(output.ax.texts[-1], drawable(text))
        return output

    def _jitter(self, color):
        return color  # Detectron2 has no public switch for its random shades


def resized(
    image: np.ndarray, record: Dict[str, Any], size: Tuple[int, int]
) -> Tuple[np.ndarray, Dict[str, Any]]:
    """Resize an image and its annotations to the size at which they are drawn.

    Args:
        image (ndarray): RGB, (H, W, 3), uint8.
        record (dict): in Detectron2's format; not changed. Only the keys ``"annotations"`` and
            ``"sem_seg"``, an array (H, W), are used. Some annotations may lack masks or keypoints.
        size (tuple[int, int]): height and width of the result.

    Returns:
        tuple[ndarray, dict]: the image, and a record for ``Visualizer.draw_dataset_dict``, which
        expects masks, and keypoints, in all annotations or in none.
    """
    transform = T.ResizeTransform(*image.shape[:2], *size)
    found = record.get("annotations") or []
    annotations = [{**a, **_resized_box(a, transform)} for a in found]
    masks = [_resized_mask(a.get("segmentation"), transform) for a in found]
    keypoints = [_resized_keypoints(a.get("keypoints"), transform) for a in found]
    num_keypoints = max(map(len, keypoints), default=0)
    for annotation, mask, points in zip(annotations, masks, keypoints):
        annotation.pop("segmentation", None)
        annotation.pop("keypoints", None)
        if any(masks):
            annotation["segmentation"] = mask
        if num_keypoints:
            padded = np.pad(points, [(0, num_keypoints - len(points)), (0, 0)])
            annotation["keypoints"] = padded.ravel().tolist()
    drawn = {"annotations": annotations}
    if record.get("sem_seg") is not None:
        drawn["sem_seg"] = _nearest(record["sem_seg"], transform)
    return transform.apply_image(image), drawn


def _resized_box(annotation: Dict[str, Any], transform: T.ResizeTransform) -> Dict[str, Any]:
    box = np.asarray(annotation["bbox"], dtype=np.float64)
    if len(box) == 5:
        return {"bbox": transform.apply_rotated_box(box[None])[0]}
    box = BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return {"bbox": transform.apply_box(box)[0], "bbox_mode": BoxMode.XYXY_ABS}


def _resized_mask(mask: Any, transform: T.ResizeTransform) -> Any:
    """Return polygons or an RLE; an empty list for no mask."""
    if isinstance(mask, list):
        polygons = [np.asarray(p, dtype=np.float64).reshape(-1) for p in mask]
        polygons = [p.reshape(-1, 2) for p in polygons if len(p) >= 6 and len(p) % 2 == 0]
        return [transform.apply_coords(p).reshape(-1) for p in polygons]
    if isinstance(mask, dict) and mask:
        if isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
        mask = mask_util.decode(mask)
    if isinstance(mask, np.ndarray):
        return mask_util.encode(np.asfortranarray(_nearest(mask, transform)))
    return []


def _nearest(labels: np.ndarray, transform: T.ResizeTransform) -> np.ndarray:
    labels = np.ascontiguousarray(labels, dtype=np.uint8)
    return cv2.resize(labels, (transform.new_w, transform.new_h), interpolation=cv2.INTER_NEAREST)


def _resized_keypoints(keypoints: Any, transform: T.ResizeTransform) -> np.ndarray:
    points = np.array([] if keypoints is None else keypoints, dtype=np.float64).reshape(-1, 3)
    points[:, :2] = transform.apply_coords(points[:, :2])
    return points
