"""YOLO's folders as Ultralytics reads them: images, labels and ``data.yaml``.

Where any object has a mask, all rows are polygons, a box one of four corners: of a file with both
Ultralytics reads the boxes as polygons of two points. YOLO has one polygon an object, so several
are joined by bridges of no width; and no crowds, which are left out.
"""

import os
import shutil
from typing import Dict, List, Set, Tuple

import yaml

from ..records import (
    DataSet,
    Object,
    Picture,
    Polygon,
    common_folder,
)
from ..shapes import decode_rle, join_polygons, polygons_of_mask


def write_yolo(data: DataSet, folder: str, link: bool) -> None:
    """Write a data set.

    Args:
        data (DataSet): what to write; what is left out is added to its notes.
        folder (str): gets ``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``.
        link (bool): link the images, and do not copy them.
    """
    things = [thing for picture in data.pictures() for thing in picture.objects]
    with_masks = any(thing.polygons or thing.rle is not None for thing in things)
    index = {name: i for i, name in enumerate(data.names)}
    for split, pictures in data.splits.items():
        root = common_folder(pictures)
        taken: Set[str] = set()
        for picture in pictures:
            stem, ending = _name(picture, root, taken, data)
            image = os.path.join(folder, "images", split, stem + ending)
            label = os.path.join(folder, "labels", split, f"{stem}.txt")
            for path in (image, label):
                os.makedirs(os.path.dirname(path), exist_ok=True)
            _put_image(picture, image, link)
            rows = _rows(picture, index, with_masks, data)
            with open(label, "w") as f:
                f.writelines(f"{row}\n" for row in rows)
    _write_data_yaml(data, folder)


def _name(picture: Picture, root: str, taken: Set[str], data: DataSet) -> Tuple[str, str]:
    """A name without its ending that no other image has: their labels are told apart by it."""
    stem, ending = os.path.splitext(os.path.relpath(picture.path, root))
    candidate, number = stem, 1
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}"
    data.notes["images renamed, as another has the same name"] += candidate != stem
    taken.add(candidate)
    return candidate, ending


def _put_image(picture: Picture, path: str, link: bool) -> None:
    if picture.embedded:
        with open(path, "wb") as f:
            f.write(picture.embedded)
    elif link:
        os.symlink(picture.path, path)
    else:
        shutil.copyfile(picture.path, path)


def _rows(picture: Picture, index: Dict[str, int], with_masks: bool, data: DataSet) -> List[str]:
    width, height = picture.size
    rows = []
    for thing in picture.objects:
        if thing.crowd:
            data.notes["crowds left out"] += 1
            continue
        if with_masks:
            polygon = _polygon(thing, data)
            shares = [n / (height if i % 2 else width) for i, n in enumerate(polygon)]
        else:
            x, y, w, h = thing.box
            shares = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
        numbers = " ".join(f"{min(max(n, 0.0), 1.0):.8g}" for n in shares)
        rows.append(f"{index[thing.category]} {numbers}")
    return rows


def _polygon(thing: Object, data: DataSet) -> Polygon:
    polygons = thing.polygons
    if thing.rle is not None:
        polygons, holes = polygons_of_mask(decode_rle(thing.rle))
        data.notes["masks drawn by their outlines"] += 1
        data.notes["masks whose holes are filled"] += holes
    if not polygons:
        x, y, w, h = thing.box
        data.notes["boxes written as polygons of four corners"] += 1
        return [x, y, x + w, y, x + w, y + h, x, y + h]
    data.notes["objects of several polygons joined to one"] += len(polygons) > 1
    return join_polygons(polygons)


def _write_data_yaml(data: DataSet, folder: str) -> None:
    splits = {split: f"images/{split}" for split in data.splits}
    if "val" not in splits:  # without which Ultralytics does not start
        splits["val"] = splits["train"]
    content = {**splits, "names": dict(enumerate(data.names))}
    with open(os.path.join(folder, "data.yaml"), "w", encoding="utf-8") as f:
        yaml.safe_dump(content, f, sort_keys=False, allow_unicode=True)
