"""An annotation file of a given size, made from a seed: COCO's format and COCO's proportions."""

import json
import os
import random
from typing import Iterator, List

import numpy as np

# Of so many different objects each annotation is one.
_SHAPES = 3000
_CLASSES = 80


def make_annotation_file(
    path: str, num_images: int, num_objects: int, *, masks: bool, corners: int = 22, seed: int = 0
) -> None:
    """Write an annotation file without mistakes; its image files are called 000000000001.jpg.

    Args:
        path (str): of the file.
        num_images (int): two thirds of them 640 x 480 pixels, the others 480 x 640.
        num_objects (int): of all images together; each is of any image, as in COCO's own files.
        masks (bool): whether objects have a polygon.
        corners (int): of each polygon.
        seed (int): of the random numbers.
    """
    with open(path, "w") as f:
        f.write('{"info": {}, "licenses": [], "images": [')
        f.write(", ".join(_images(num_images)))
        f.write('], "annotations": [')
        for i, text in enumerate(_annotations(num_images, num_objects, masks, corners, seed)):
            f.write(f", {text}" if i else text)
        classes = [{"id": i, "name": f"class {i}", "supercategory": ""} for i in _class_ids()]
        f.write(f'], "categories": {json.dumps(classes)}}}')


def make_image_files(folder: str, num_images: int) -> None:
    """Make the image files of such an annotation file; they are empty."""
    os.makedirs(folder, exist_ok=True)
    for i in range(1, num_images + 1):
        with open(os.path.join(folder, _file_name(i)), "w"):
            pass


def _class_ids() -> range:
    return range(1, _CLASSES + 1)


def _file_name(i: int) -> str:
    return f"{i:012d}.jpg"


def _images(num_images: int) -> Iterator[str]:
    for i in range(1, num_images + 1):
        width, height = (640, 480) if i % 3 else (480, 640)
        yield (
            f'{{"license": 1, "file_name": "{_file_name(i)}", "coco_url": '
            f'"http://images.cocodataset.org/train2017/{_file_name(i)}", "height": {height}, '
            f'"width": {width}, "date_captured": "2013-11-14 17:02:52", "id": {i}}}'
        )


def _annotations(
    num_images: int, num_objects: int, masks: bool, corners: int, seed: int
) -> Iterator[str]:
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    shapes = _shapes(rng, masks, corners)
    images = rng.integers(1, num_images + 1, num_objects)
    classes = rng.integers(1, _CLASSES + 1, num_objects)
    for i in range(num_objects):
        yield (
            f'{{"segmentation": {shapes[choose.randrange(_SHAPES)]}, "image_id": {images[i]}, '
            f'"category_id": {classes[i]}, "id": {i + 1}}}'
        )


def _shapes(rng: np.random.Generator, masks: bool, corners: int) -> List[str]:
    """What an annotation has behind ``"segmentation": ``, which fits into every image."""
    texts = []
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    for _ in range(_SHAPES):
        w, h = rng.uniform(8, 300, 2)
        x, y = rng.uniform(0, 479 - w), rng.uniform(0, 479 - h)
        polygon = np.stack([w * (1 + np.cos(angle)), h * (1 + np.sin(angle))], axis=1) / 2
        mask = (polygon + [x, y]).round(2).ravel().tolist()
        box = [round(float(v), 2) for v in (x, y, w, h)]
        texts.append(
            f'{json.dumps([mask] if masks else [])}, "area": {round(box[2] * box[3], 2)}, '
            f'"iscrowd": 0, "bbox": {json.dumps(box)}'
        )
    return texts
