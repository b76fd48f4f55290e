"""Images as arrays of 8 bits, and one error for everything wrong with a file.

As Detectron2's ``read_image``, except where it goes wrong:

- An image of more pixels than Pillow decodes, or of another size than the annotations say, is
  refused by its header, before there is memory for its pixels.
- 16-bit grey keeps the high byte, as Pillow does for 16-bit RGB. Its ``convert("RGB")`` would
  clip at 255 instead, which leaves a white picture.
- EXIF orientation is applied once. Pillow turns a TIFF by itself, and ``read_image`` once more.
- Transparency is dropped and the colours below it are kept, as ``convert("RGB")`` does.
"""

import io
import logging
import os
import struct
from typing import Any, BinaryIO, Callable, Dict, Iterable, Sequence, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError, printable
from .opening import StorageError, storage_of
from .opening import open_file as storage_open

_EXIF_ORIENTATION = 0x0112
# https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, 4.6.4, Orientation
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
# Formats whose mode "I", of 32 bits, holds 16: Pillow opens their 16-bit grey in it, PNG before
# Pillow 11.
_16_BIT_FORMATS = ("PNG", "PPM")

# https://www.w3.org/Graphics/JPEG/itu-t81.pdf, table B.1: SOI and EOI.
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"

_START = "cannot use the image "
# Kinds that Pillow registers without having a decoder.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")


class BadImageError(UserError):
    """One image file, or an annotation of it, cannot be used.

    Args:
        path (str): of the file.
        reason (str): why it cannot be used. Without a reason, ``path`` is a text that contains
            the message of such an error: ``torch.utils.data.DataLoader`` creates a worker's
            exception again from the text of its traceback.

    Attributes:
        path (str): of the file.
        reason (str): one line.
    """

    def __init__(self, path: str, reason: str | None = None):
        if reason is None:
            text = path.rpartition(_START)[2].partition("\n")[0]
            path, _, reason = text.rpartition(": ")
        self.path = printable(path)
        self.reason = printable(reason).replace(": ", ", ")
        super().__init__(f"{_START}{self.path}: {self.reason}")

    def __reduce__(self):
        return type(self), (self.path, self.reason)


def is_image_name(name: str) -> bool:
    """Whether a file in a folder counts as an image: by its ending, unless it is hidden."""
    Image.init()
    name = os.path.basename(name)
    kind = Image.EXTENSION.get(os.path.splitext(name)[1].lower())
    # Pillow opens MPO, the format of many phones, by its reader of JPEG.
    is_read = kind in Image.OPEN and kind not in _NOT_DECODED or kind == "MPO"
    return is_read and not name.startswith(".")


def read_image(
    path: str,
    image_format: str | None,
    size: Tuple[int, int] | None = None,
    *,
    partial: bool = False,
    content: bytes | None = None,
) -> np.ndarray:
    """Read an image, upright by its EXIF orientation.

    Args:
        path (str): a file; ``images.tar!/a.jpg``, which is in a tar file; or anything that
            Detectron2's ``PathManager`` opens, as ``https://…``, which is tried several times and
            of which a copy is kept (``DATASETS.IMAGE_CACHE_GB``).
        image_format (str or None): as for Detectron2's ``read_image``: a mode of Pillow as
            ``"RGB"`` or ``"L"``, or ``"BGR"`` or ``"YUV-BT.601"``; ``None`` leaves the mode.
        size (tuple[int, int] or None): the width and height, in pixels, that it must have.
        partial (bool): read a JPEG that is cut at its end as far as it goes; the rest is gray, or
            in a progressive one coarse.
        content (bytes or None): of the file, which is not opened then; ``path`` is its name in
            messages.

    Returns:
        ndarray: (H, W, C), uint8, 0 ... 255; float for ``"YUV-BT.601"``.

    Raises:
        BadImageError: if the file is not there, is no image, is damaged, has more pixels than
            Pillow decodes (twice ``PIL.Image.MAX_IMAGE_PIXELS``), has pixels of more than 16 bits
            a channel, or has another size.
    """
    try:
        if content is not None:
            return _as_array(_open(io.BytesIO(content), size), image_format)
        try:
            return _read(path, image_format, size)
        except (OSError, _Unusable) as e:
            if not storage_of(path).is_stale(e):
                raise
            return _read(path, image_format, size, fresh=True)
    except Exception as e:  # Pillow raises many types for damaged files
        error = BadImageError(path, _reason(e))
    if partial:
        try:
            if content is None:
                with storage_open(path) as f:
                    content = f.read()
            if content.startswith(_JPEG_START):
                return _as_array(_open(io.BytesIO(content + _JPEG_END), size), image_format)
        except Exception:  # the first error says more
            pass
    raise error


def reads_partial_images(cfg: Any) -> bool:
    """Whether ``INPUT.DAMAGED_IMAGES`` reads damaged images as far as they go."""
    return cfg.INPUT.get("DAMAGED_IMAGES") == "partial"


def _read(path: str, image_format: str | None, size: Any, fresh: bool = False) -> np.ndarray:
    with storage_open(path, fresh=fresh) as f:
        return _as_array(_open(f, size), image_format)


def _as_array(image: Image.Image, image_format: str | None) -> np.ndarray:
    if image_format in ("RGB", "BGR"):  # without Detectron2, which imports torch
        pixels = np.asarray(image.convert("RGB"))
        return pixels if image_format == "RGB" else pixels[:, :, ::-1]
    from detectron2.data.detection_utils import convert_PIL_to_numpy

    return convert_PIL_to_numpy(image, image_format)


def read_rgb(path: str, open_file: Callable[[], BinaryIO] | None = None) -> Image.Image:
    """Read an image as :func:`read_image` does, as an upright RGB image of Pillow.

    ``open_file`` opens a part of an archive or a table; ``path`` is then its name in messages.
    """
    try:
        with storage_open(path) if open_file is None else open_file() as f:
            return _open(f, None).convert("RGB")
    except Exception as e:  # as above
        raise BadImageError(path, _reason(e)) from None


def image_size(path: str) -> Tuple[int, int]:
    """Read the width and height of an image, as :func:`read_image` returns it, from its header."""
    try:
        with storage_open(path) as f:
            if not f.read(1):
                raise _Unusable("the file is empty")
            f.seek(0)
            image = Image.open(f)
            width, height = image.size
            if image.format == "PNG" and not _may_have_exif(f):
                return width, height
            return (height, width) if _orientation(image) in _ON_ITS_SIDE else (width, height)
    except Exception as e:
        raise BadImageError(path, _reason(e)) from None


def _may_have_exif(f: BinaryIO) -> bool:
    """Whether a PNG has a chunk that may hold EXIF; to find out, Pillow decodes all pixels."""
    f.seek(8)  # after the signature
    while len(head := f.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            return True
        f.seek(length + 4, os.SEEK_CUR)  # the data and its checksum
    return False


class _Unusable(Exception):
    """The image cannot be used; the text is the reason."""


def _open(f: BinaryIO, size: Tuple[int, int] | None) -> Image.Image:
    if not f.read(1):
        raise _Unusable("the file is empty")
    f.seek(0)
    image = Image.open(f)
    stored_size = image.size
    if size is not None and sorted(stored_size) != sorted(size):
        raise _Unusable(_size_reason(stored_size, size))
    image.load()
    image.info.pop("transparency", None)  # of which Pillow warns when it is dropped
    # Asked for when the pixels are there: a TIFF has been turned by then and says so.
    image = _upright(_to_8_bit(image), _orientation(image))
    if size is not None and image.size != tuple(size):
        raise _Unusable(_size_reason(image.size, size, turned=image.size != stored_size))
    return image


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # damaged EXIF is no reason to lose the image, here as in Detectron2
        return None


def _upright(image: Image.Image, orientation: Any) -> Image.Image:
    method = _TO_UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BIT_FORMATS):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        # TIFF's tag BitsPerSample: Pillow opens signed integers of 16 bits in mode "I" as well.
        bits = getattr(image, "tag_v2", {}).get(258, (32,))[0]
        kind = "floating-point" if image.mode.startswith("F") else f"{bits}-bit integer"
        kind = f"signed {kind}" if bits == 16 else kind
        raise _Unusable(
            f"it has {kind} pixels, which have no known range; save it with 8 bits a channel"
        )
    return image


def _size_reason(size: Tuple[int, int], expected: Tuple[int, int], turned: bool = False) -> str:
    reason = (
        f"it has {size[0]} x {size[1]} pixels, the annotation file says "
        f"{expected[0]} x {expected[1]} (width x height)"
    )
    if turned:
        reason += "; its EXIF orientation turns it, so annotate the upright image"
    return reason


def _reason(error: Exception) -> str:
    if isinstance(error, (_Unusable, UserError)):
        return str(error)
    if isinstance(error, StorageError):
        return f"it cannot be fetched, {error}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or of a kind that Pillow does not read"
    if isinstance(error, Image.DecompressionBombError):
        return f"it is too large to be decoded ({error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "there is too little memory for it"
    text = str(error) or "no reason given"
    # Pillow's OSErrors give the reason, as "image file is truncated".
    return f"it is damaged ({text if isinstance(error, OSError) else f'{_name(error)}, {text}'})"


def _name(error: Exception) -> str:
    return type(error).__name__


# ---- bad images of a training ----


logger = logging.getLogger(__name__)


class BadImages:
    """Which image files were skipped, the same in all processes once they were counted.

    Args:
        max_num (int): how many different files may be bad.

    Attributes:
        reasons (dict[str, str]): by path, why each is bad.
        counted_by_loader (bool): whether each batch is counted when it is loaded, in a collective
            call; a trainer turns that off, and counts them along with its losses.
    """

    def __init__(self, max_num: int):
        self._max_num = max_num
        self._uncounted: Dict[str, str] = {}
        self.reasons: Dict[str, str] = {}
        self.counted_by_loader = True

    def add(self, found: Iterable[Tuple[str, str]]) -> None:
        """Add bad images of this process, as paths and reasons."""
        self._uncounted.update(found)

    def take(self) -> Dict[str, str]:
        """Return the bad images since the last call, for :meth:`count`; usually none."""
        uncounted, self._uncounted = self._uncounted, {}
        return uncounted

    def count(self, found: Sequence[Dict[str, str]]) -> None:
        """Log and count the bad images of all processes, from their results of :meth:`take`."""
        reasons = {path: reason for of_one in found for path, reason in of_one.items()}
        for path in sorted(reasons.keys() - self.reasons.keys()):
            self.reasons[path] = reasons[path]
            logger.warning(
                f"Skipped a bad image, number {len(self.reasons)} of at most {self._max_num}: "
                f"{path}: {reasons[path]}"
            )
        if len(self.reasons) > self._max_num:
            raise UserError(
                f"more than {self._max_num} images are bad, the last one is "
                f"{list(self.reasons)[-1]}: fix the data, or raise DATALOADER.MAX_BAD_IMAGES "
                "(INPUT.DAMAGED_IMAGES error allows none)"
            )
