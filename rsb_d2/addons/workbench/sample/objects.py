"""The single objects of pictures like the sample data's, one folder a class: to pretrain on."""

import os
from typing import Any, Dict, Iterator, Tuple

import cv2
import numpy as np
from PIL import Image

from .draw import CLASS_NAMES, Shape, draw_picture
from .folder import JPEG_QUALITY
from .whole_folder import check_int, make_whole_folder, num_files

_MADE_BY = "rsb_d2.addons.workbench.sample objects"
_VERSION = 1  # of the pictures: data made by another version is made anew
_SPLITS = ("train", "val")
# Of the pictures that the objects are cut from; the detector's are of another seed.
_PICTURE_SIZE = 160
# Side of the square that is cut out, relative to the longer side of the object's box.
_MARGINS = (1.1, 1.7)


def make_sample_objects(
    folder: str,
    *,
    num_train: int = 4800,
    num_val: int = 400,
    image_size: int = 80,
    seed: int = 2110,
) -> None:
    """Write pictures of one object each, in ``train`` and ``val`` and there by class.

    They are cut from pictures as :func:`make_sample_data` draws them, so with what lies over and
    behind an object. All or nothing, and the same bytes, as there.

    Args:
        folder (str): as of :func:`make_sample_data`.
        num_train (int): number of training images, all classes together; shared out evenly.
        num_val (int): number of validation images.
        image_size (int): side of the square images in pixels, 16 ... 160.
        seed (int): 0 or more; with that of the sample data the pictures would be the same.

    Raises:
        UserError: if an argument is out of its range, or the folder holds something else.
    """
    num_classes = len(CLASS_NAMES)
    manifest = dict(
        made_by=_MADE_BY,
        version=_VERSION,
        num_train=check_int("num_train", num_train, num_classes),
        num_val=check_int("num_val", num_val, num_classes),
        image_size=check_int("image_size", image_size, 16, _PICTURE_SIZE),
        seed=check_int("seed", seed, 0),
    )
    make_whole_folder(folder, manifest, _SPLITS, _write, _is_filled)


def _quotas(num_images: int) -> Dict[str, int]:
    num_classes = len(CLASS_NAMES)
    return {name: (num_images + num_classes - 1 - i) // num_classes for i, name in _classes()}


def _classes() -> Iterator[Tuple[int, str]]:
    return enumerate(CLASS_NAMES)


def _is_filled(folder: str, manifest: Dict[str, Any]) -> bool:
    return all(
        num_files(folder, split, name) == quota
        for split in _SPLITS
        for name, quota in _quotas(manifest[f"num_{split}"]).items()
    )


def _write(folder: str, manifest: Dict[str, Any]) -> None:
    for split_index, split in enumerate(_SPLITS):
        left = _quotas(manifest[f"num_{split}"])
        for name in CLASS_NAMES:
            os.makedirs(os.path.join(folder, split, name))
        number = 0
        while any(left.values()):
            rng = np.random.default_rng([manifest["seed"], split_index, number])
            picture, shapes = draw_picture(rng, _PICTURE_SIZE)
            number += 1
            for i, shape in enumerate(shapes):
                name = CLASS_NAMES[shape.class_index]
                crop = _cut_out(rng, picture, shape, manifest["image_size"])
                if left[name]:
                    left[name] -= 1
                    path = os.path.join(folder, split, name, f"{number:06d}_{i}.jpg")
                    Image.fromarray(crop).save(path, quality=JPEG_QUALITY)


def _cut_out(rng: np.random.Generator, picture: np.ndarray, shape: Shape, size: int) -> np.ndarray:
    """Return a square of the picture with the object somewhere in it: (size, size, 3)."""
    rows, columns = (np.flatnonzero(shape.visible.any(axis=axis)) for axis in (1, 0))
    low = np.array([rows[0], columns[0]])
    high = np.array([rows[-1], columns[-1]]) + 1
    wanted = int((high - low).max() * rng.uniform(*_MARGINS))
    side = min(wanted, *picture.shape[:2])
    # As far as the object stays inside, where the picture is large enough for that.
    first = np.maximum(np.minimum(high - side, low), 0)
    last = np.minimum(np.maximum(high - side, low), np.array(picture.shape[:2]) - side)
    top, left = (int(rng.integers(min(a, b), max(a, b) + 1)) for a, b in zip(first, last))
    crop = picture[top : top + side, left : left + side]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
