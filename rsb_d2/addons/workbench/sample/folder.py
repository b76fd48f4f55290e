"""The folder of the sample data, in COCO's format."""

import os
from typing import Any, Dict, List

import cv2
import numpy as np
from PIL import Image

from .draw import CLASS_NAMES, Shape, draw_picture
from .whole_folder import (
    check_int,
    make_whole_folder,
    num_files,
    write_json,
)

_MADE_BY = "rsb_d2.addons.workbench.sample"
_FOLDERS = ("train", "val", "annotations")
_VERSION = 2  # of the pictures: data made by another version is made anew
JPEG_QUALITY = 92


def make_sample_data(
    folder: str,
    *,
    num_train: int = 1600,
    num_val: int = 200,
    image_size: int = 160,
    seed: int = 0,
) -> None:
    """Write pictures of shapes and their COCO-format annotations, all or nothing.

    A folder that this function made with the same arguments is left as it is; one that it made
    with others is replaced. The same arguments give the same bytes on the same machine, with the
    same versions of NumPy, OpenCV and Pillow.

    Args:
        folder (str): folder to make; it must not be there, be empty, or be the sample data of an
            earlier call. May begin with ``~``.
        num_train (int): number of training images, 1 or more. More of them leave the first as
            they were.
        num_val (int): number of validation images, 1 or more.
        image_size (int): longer side of the images in pixels, 64 ... 1024.
        seed (int): 0 or more.

    Raises:
        UserError: if an argument is out of its range, or the folder holds something else.
    """
    manifest = dict(
        made_by=_MADE_BY,
        version=_VERSION,
        num_train=check_int("num_train", num_train, 1),
        num_val=check_int("num_val", num_val, 1),
        image_size=check_int("image_size", image_size, 64, 1024),
        seed=check_int("seed", seed, 0),
    )
    make_whole_folder(folder, manifest, _FOLDERS, _write, _is_filled)


def _is_filled(folder: str, manifest: Dict[str, Any]) -> bool:
    counts = [num_files(folder, subfolder) for subfolder in _FOLDERS]
    return counts == [manifest["num_train"], manifest["num_val"], 2]


def _write(folder: str, manifest: Dict[str, Any]) -> None:
    for subfolder in _FOLDERS:
        os.makedirs(os.path.join(folder, subfolder))
    for split_index, split in enumerate(("train", "val")):
        images, annotations = [], []
        for image_id in range(1, manifest[f"num_{split}"] + 1):
            rng = np.random.default_rng([manifest["seed"], split_index, image_id])
            picture, shapes = draw_picture(rng, manifest["image_size"])
            image = dict(
                id=image_id,
                file_name=f"{image_id:06d}.jpg",
                height=picture.shape[0],
                width=picture.shape[1],
            )
            path = os.path.join(folder, split, image["file_name"])
            Image.fromarray(picture).save(path, quality=JPEG_QUALITY)
            images.append(image)
            annotations += [to_annotation(shape, image_id) for shape in shapes]
        for annotation_id, annotation in enumerate(annotations, start=1):
            annotation["id"] = annotation_id
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASS_NAMES, start=1)]
        content = dict(info={}, images=images, annotations=annotations, categories=categories)
        write_json(os.path.join(folder, "annotations", f"{split}.json"), content)


def to_annotation(shape: Shape, image_id: int) -> Dict[str, Any]:
    """Return the COCO annotation of what is visible of a shape, its ``id`` still to be set."""
    rows, columns = (np.flatnonzero(shape.visible.any(axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return dict(
        id=0,
        image_id=image_id,
        category_id=shape.class_index + 1,
        bbox=[x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        area=int(shape.visible.sum()),
        iscrowd=0,
        segmentation=_polygons(shape),
    )


def _polygons(shape: Shape) -> List[List[float]]:
    """Return polygons that pycocotools decodes to exactly the visible mask."""
    if (shape.visible == shape.mask).all():
        return [shape.polygon.ravel().tolist()]
    # Of a mask of twice the size, the outline through the outermost pixels' centres lies a quarter
    # pixel inside the mask's edge: all pixel centres of the mask itself are within.
    twice = shape.visible.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((contour + 0.5) / 2).ravel().tolist() for contour in contours]
