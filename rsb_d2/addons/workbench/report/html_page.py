"""HTML pages with everything inside them: style, scripts, data and pictures.

hotcoco's own views do not replace them: ``COCO.browse`` of 1.3 needs a running server and the
images, and its report is a PDF of figures, without images and without filters.
"""

import base64
import html
import json
import os
import sys
import uuid
from typing import Any, Callable, Dict, Iterable, List, Sequence

import cv2
import numpy as np
from hotcoco import mask as mask_util
from tqdm import tqdm

from ....data.images import BadImageError, read_image
from ....data.opening import image_path
from ....errors import UserError
from ....files import whole_file
from .source import Source

_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "page")

_LONGEST_SIDE = 400  # of a thumbnail, in pixels
_QUALITY = 78
# Bytes of all images of a page with their shapes; plotly itself has 5 MB.
_BUDGET = 9_000_000


def check_output(path: str, suffix: str) -> None:
    """Check early that a file can be written, and make the folders that are missing.

    Args:
        path (str): file to write.
        suffix (str): required suffix of its name.

    Raises:
        UserError: if it is a folder, is in a folder that is not writable, or has another suffix.
    """
    if os.path.isdir(path):
        example = os.path.join(path, "page" + suffix)
        raise UserError(f"--output: {path} is a folder; name a file, e.g. {example}")
    if not path.endswith(suffix):
        raise UserError(f"--output: {path} must end in {suffix}")
    folder = os.path.dirname(os.path.abspath(path))
    probe = os.path.join(folder, f".{uuid.uuid4().hex}")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(probe, "w"):
            pass
        os.remove(probe)
    except OSError as e:
        raise UserError(f"--output: cannot write to the folder {folder}: {e.strerror}") from None


def write_page(path: str, template: str, title: str, data: Dict[str, Any]) -> None:
    """Write a page that refers to nothing outside itself.

    Args:
        path (str): HTML file to write.
        template (str): ``"report"`` or ``"browse"``.
        title (str): its title, as plain text.
        data (dict): shown by the template's script.

    Raises:
        UserError: if plotly, which draws the charts, is not installed, or if the file cannot be
            written.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("the charts need plotly; install it: pip install plotly") from None
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _asset("style.css"),
        "BODY": _asset(f"{template}.html"),
        "COMMON": _asset("common.js"),
        "SCRIPT": _asset(f"{template}.js"),
        # A browser looks for tags in the data as well; in JSON, "\\u003c" is "<".
        "DATA": text.replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),
    }
    pieces = _asset("page.html").split("%%")
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    with whole_file(path) as f:
        f.write("".join(pieces).encode())


def _asset(name: str) -> str:
    with open(os.path.join(_FOLDER, name), encoding="utf-8") as f:
        return f.read()


def progress(what: str) -> Callable[[Iterable], Iterable]:
    """Return a function that shows on stderr how far the loop over its argument is."""
    return lambda values: tqdm(values, desc=what, file=sys.stderr, mininterval=0.5, leave=False)


# ---- images ----


def describe_images(
    source: Source, chosen: Sequence[int], describe: Callable[[int], Dict[str, Any]]
) -> List[Dict[str, Any]]:
    """Return images in the form that the scripts of the pages take.

    Args:
        source (Source): the data set.
        chosen (sequence of int): indices of images. The last are left out if the page becomes too
            large.
        describe (callable): returns the content to show for an image, such as its objects.

    Returns:
        list[dict]: ``file``, ``w``, ``h``, ``src`` (a data URI or None), and the description.
    """
    described, size = [], 0
    for i in progress("images")(chosen):
        image = source.images[i]
        entry = dict(
            file=image["file_name"],
            w=image["width"],
            h=image["height"],
            src=thumbnail(source, image),
            **describe(i),
        )
        size += sum(len(str(value)) for value in entry.values())
        if size > _BUDGET:
            break
        described.append(entry)
    return described


def thumbnail(source: Source, image: Dict[str, Any]) -> str | None:
    """Return an image of at most 400 pixels as a data URI; None if it cannot be read."""
    try:
        picture = read_image(image_path(source.image_root, image["file_name"]), "BGR")
    except BadImageError:  # shown on the page
        return None
    scale = min(1.0, _LONGEST_SIDE / max(picture.shape[:2]))
    if scale < 1:
        size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode("ascii")


def outline(rle: Dict[str, Any]) -> str:
    """Return the outline of an RLE as an SVG path; holes stay holes under the even-odd rule."""
    x, y, w, h = map(int, mask_util.toBbox(rle))
    if not w:
        return ""
    mask = mask_util.decode(rle)
    cropped = np.ascontiguousarray(mask[y : y + h, x : x + w])  # ten times as fast as all of it
    contours, _ = cv2.findContours(cropped, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    tolerance = max(mask.shape) / _LONGEST_SIDE * 0.7
    path = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, tolerance, True)[:, 0].tolist()
        if len(points) > 2:
            path.append("M" + "L".join(f"{x} {y}" for x, y in points) + "Z")
    return "".join(path)


def rounded(box: Iterable[float]) -> List[float]:
    """Return a box to a tenth of a pixel."""
    return [round(float(v), 1) for v in box]
