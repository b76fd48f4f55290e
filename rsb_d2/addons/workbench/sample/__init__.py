"""Sample data to train on: generated images of shapes with boxes and masks, and single objects.

:func:`make_sample_data` writes COCO-format data for detectors::

    FOLDER/train/000001.jpg ...
    FOLDER/val/000001.jpg ...
    FOLDER/annotations/train.json, val.json
    FOLDER/sample.json                        the arguments

:func:`make_sample_objects` writes crops of one object each, a folder per class, for pretraining::

    FOLDER/train/circle/000001_0.jpg ...
    FOLDER/val/circle/000001_0.jpg ...
    FOLDER/sample.json

Both write all files or none. A complete folder with the same arguments is left as it is; one with
other arguments is replaced. The same arguments give the same bytes on the same machine with the
same versions of NumPy, OpenCV and Pillow. ``tools/sample_data.py`` is their command line.
"""

import json
import os
import shutil
from typing import Any, Callable, Dict, List

import cv2
import numpy as np
from PIL import Image

from ....errors import UserError, first
from ....files import whole_folder
from .draw import CLASS_NAMES, Shape, draw_picture

MANIFEST = "sample.json"
_SPLITS = ("train", "val")
_JPEG_QUALITY = 92

# Of the pictures that objects are cut from; the detector's pictures have another seed.
_PICTURE_SIZE = 160
# Side of the square that is cut out, relative to the longer side of the object's box.
_MARGINS = (1.1, 1.7)


def make_sample_data(
    folder: str,
    *,
    num_train: int = 1600,
    num_val: int = 200,
    image_size: int = 160,
    seed: int = 0,
) -> None:
    """Write pictures of shapes and their COCO-format annotations.

    Args:
        folder (str): folder to make; it must not exist, be empty, or hold the sample data of an
            earlier call. May begin with ``~``.
        num_train (int): number of training images, 1 or more. The first images do not depend on it.
        num_val (int): number of validation images, 1 or more.
        image_size (int): longer side of the images in pixels, 64 to 1024.
        seed (int): 0 or more.

    Raises:
        UserError: if an argument is out of range, if the folder holds other files, or if it
            cannot be written.
    """
    manifest = dict(
        made_by="rsb_d2.sample",
        version=2,  # of the pictures: data of another version is replaced
        num_train=_check_int("num_train", num_train, 1),
        num_val=_check_int("num_val", num_val, 1),
        image_size=_check_int("image_size", image_size, 64, 1024),
        seed=_check_int("seed", seed, 0),
    )
    counts = {"train": num_train, "val": num_val, "annotations": 2}
    _make_folder(folder, manifest, counts, _write_pictures)


def make_sample_objects(
    folder: str,
    *,
    num_train: int = 4800,
    num_val: int = 400,
    image_size: int = 80,
    seed: int = 2110,
) -> None:
    """Write pictures of one object each, in ``train`` and ``val``, with a folder per class.

    Objects are cut from pictures like those of :func:`make_sample_data`, with the background and
    with overlapping objects.

    Args:
        folder (str): as in :func:`make_sample_data`.
        num_train (int): number of training images of all classes, which are equally frequent.
        num_val (int): number of validation images.
        image_size (int): side of the square images in pixels, 16 to 160.
        seed (int): 0 or more; with the seed of the sample data, the pictures would be the same.

    Raises:
        UserError: as in :func:`make_sample_data`.
    """
    manifest = dict(
        made_by="rsb_d2.sample objects",
        version=1,
        num_train=_check_int("num_train", num_train, len(CLASS_NAMES)),
        num_val=_check_int("num_val", num_val, len(CLASS_NAMES)),
        image_size=_check_int("image_size", image_size, 16, _PICTURE_SIZE),
        seed=_check_int("seed", seed, 0),
    )
    counts = {
        f"{split}/{name}": num
        for split in _SPLITS
        for name, num in _images_per_class(manifest[f"num_{split}"]).items()
    }
    _make_folder(folder, manifest, counts, _write_objects)


# ---- the folder ----


def _make_folder(
    folder: str,
    manifest: Dict[str, Any],
    counts: Dict[str, int],
    write: Callable[[str, Dict[str, Any]], None],
) -> None:
    """Make a folder unless it is complete; ``counts`` has the number of files per subfolder."""
    folder = os.path.realpath(os.path.expanduser(folder))

    def is_complete() -> bool:
        found = _read_manifest(folder)
        return (
            found is not None
            and {**found, "made_by": _kind(found)} == {**manifest, "made_by": _kind(manifest)}
            and all(_num_files(os.path.join(folder, name)) == num for name, num in counts.items())
        )

    if is_complete():
        return
    _check_replaceable(folder, manifest, counts)
    try:
        with whole_folder(folder) as new:
            for name in counts:
                os.makedirs(os.path.join(new, name))
            write(new, manifest)
            _write_json(os.path.join(new, MANIFEST), manifest)
            if not is_complete():
                shutil.rmtree(folder, ignore_errors=True)
    except UserError:
        if not is_complete():  # else another process was faster
            raise


def _check_replaceable(folder: str, manifest: Dict[str, Any], counts: Dict[str, int]) -> None:
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is a file; name a folder for the sample data")
    others = set(os.listdir(folder))
    found = _read_manifest(folder)
    if found is not None and _kind(found) == _kind(manifest):
        others -= {MANIFEST, *(name.split("/")[0] for name in counts)}
    if others:
        raise UserError(
            f"{folder} holds files that are not sample data ({first(sorted(others), 3)}); "
            "name another folder, or empty it"
        )


def _kind(manifest: Dict[str, Any]) -> str:
    """Return "sample" or "sample objects"; older versions wrote other package names before it."""
    return str(manifest.get("made_by")).rpartition(".")[2]


def _read_manifest(folder: str) -> Dict[str, Any] | None:
    try:
        with open(os.path.join(folder, MANIFEST)) as f:
            content = json.load(f)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _num_files(folder: str) -> int:
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def _write_json(path: str, content: Dict[str, Any]) -> None:
    with open(path, "w") as f:
        f.write(json.dumps(content, separators=(",", ":")) + "\n")


def _check_int(name: str, value: int, low: int, high: int | None = None) -> int:
    if type(value) is not int or value < low or (high is not None and value > high):
        range_ = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {value!r}; it must be an integer {range_}")
    return value


# ---- pictures with COCO's annotations ----


def _write_pictures(folder: str, manifest: Dict[str, Any]) -> None:
    for split_index, split in enumerate(_SPLITS):
        images, annotations = [], []
        for image_id in range(1, manifest[f"num_{split}"] + 1):
            rng = np.random.default_rng([manifest["seed"], split_index, image_id])
            picture, shapes = draw_picture(rng, manifest["image_size"])
            height, width = picture.shape[:2]
            name = f"{image_id:06d}.jpg"
            Image.fromarray(picture).save(os.path.join(folder, split, name), quality=_JPEG_QUALITY)
            images.append(dict(id=image_id, file_name=name, height=height, width=width))
            annotations += [to_annotation(shape, image_id) for shape in shapes]
        for annotation_id, annotation in enumerate(annotations, start=1):
            annotation["id"] = annotation_id
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASS_NAMES, start=1)]
        content = dict(info={}, images=images, annotations=annotations, categories=categories)
        _write_json(os.path.join(folder, "annotations", f"{split}.json"), content)


def to_annotation(shape: Shape, image_id: int) -> Dict[str, Any]:
    """Return the COCO annotation of the visible part of a shape, without a valid ``id``."""
    y0, y1, x0, x1 = _extent(shape)
    return dict(
        id=0,
        image_id=image_id,
        category_id=shape.class_index + 1,
        bbox=[x0, y0, x1 - x0, y1 - y0],
        area=int(shape.visible.sum()),
        iscrowd=0,
        segmentation=_polygons(shape),
    )


def _extent(shape: Shape) -> List[int]:
    """Return the first row, the end of the rows, the first column and the end of the columns."""
    rows, columns = (np.flatnonzero(shape.visible.any(axis=axis)) for axis in (1, 0))
    return [int(i) for i in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)]


def _polygons(shape: Shape) -> List[List[float]]:
    """Return polygons that pycocotools decodes to exactly the visible mask."""
    if (shape.visible == shape.mask).all():
        return [shape.polygon.ravel().tolist()]
    # In a mask of twice the size, the outline through the centers of the outermost pixels lies a
    # quarter pixel inside the mask's edge: it contains all pixel centers of the mask itself.
    twice = shape.visible.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((contour + 0.5) / 2).ravel().tolist() for contour in contours]


# ---- single objects ----


def _images_per_class(num_images: int) -> Dict[str, int]:
    num_classes = len(CLASS_NAMES)
    return {
        name: (num_images + num_classes - 1 - i) // num_classes
        for i, name in enumerate(CLASS_NAMES)
    }


def _write_objects(folder: str, manifest: Dict[str, Any]) -> None:
    for split_index, split in enumerate(_SPLITS):
        missing = _images_per_class(manifest[f"num_{split}"])
        number = 0
        while any(missing.values()):
            rng = np.random.default_rng([manifest["seed"], split_index, number])
            picture, shapes = draw_picture(rng, _PICTURE_SIZE)
            number += 1
            for i, shape in enumerate(shapes):
                name = CLASS_NAMES[shape.class_index]
                crop = _crop(rng, picture, shape, manifest["image_size"])
                if missing[name]:
                    missing[name] -= 1
                    path = os.path.join(folder, split, name, f"{number:06d}_{i}.jpg")
                    Image.fromarray(crop).save(path, quality=_JPEG_QUALITY)


def _crop(rng: np.random.Generator, picture: np.ndarray, shape: Shape, size: int) -> np.ndarray:
    """Return a random square of the picture that contains the object: (size, size, 3)."""
    y0, y1, x0, x1 = _extent(shape)
    low, high = np.array([y0, x0]), np.array([y1, x1])
    side = min(int((high - low).max() * rng.uniform(*_MARGINS)), *picture.shape[:2])
    # The object stays inside if the picture is large enough.
    start = np.maximum(np.minimum(high - side, low), 0)
    stop = np.minimum(np.maximum(high - side, low), np.array(picture.shape[:2]) - side)
    top, left = (int(rng.integers(min(a, b), max(a, b) + 1)) for a, b in zip(start, stop))
    crop = picture[top : top + side, left : left + side]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)
