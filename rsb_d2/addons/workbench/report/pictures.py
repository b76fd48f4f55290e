"""Images and shapes in the form that the pages take: small JPEGs as data URIs, SVG paths."""

import base64
from typing import Any, Dict, List

import cv2
import numpy as np
import pycocotools.mask as mask_util

from ....data.images import BadImageError, read_image
from ....data.opening import image_path
from .source import Source

LONGEST_SIDE = 400
# Of all thumbnails of a page together, in bytes; plotly itself is 5 MB.
BUDGET = 9_000_000

_QUALITY = 78


def thumbnail(source: Source, image: Dict[str, Any]) -> str | None:
    """Return an image, no larger than 400 pixels, as a data URI; None if it cannot be read.

    Args:
        source (Source): for the image folder.
        image (dict): one of ``Source.images``.
    """
    try:
        picture = read_image(image_path(source.image_root, image["file_name"]), "BGR")
    except BadImageError:  # the page says so
        return None
    scale = min(1.0, LONGEST_SIDE / max(picture.shape[:2]))
    if scale < 1:
        size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode("ascii")


def outline(rle: Dict[str, Any]) -> str:
    """Return the outline of a mask as an SVG path in the image's pixels.

    Args:
        rle (dict): compressed RLE; holes stay holes under the even-odd rule.
    """
    mask = mask_util.decode(rle)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    tolerance = max(mask.shape) / LONGEST_SIDE * 0.7
    path = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, tolerance, True)[:, 0].tolist()
        if len(points) > 2:
            path.append("M" + "L".join(f"{x} {y}" for x, y in points) + "Z")
    return "".join(path)


def rounded(box: np.ndarray) -> List[float]:
    """Return a box, x, y, width, height, with a tenth of a pixel."""
    return [round(float(v), 1) for v in box]
