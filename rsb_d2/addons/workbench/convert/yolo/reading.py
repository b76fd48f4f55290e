"""YOLO's labels as Ultralytics has them: a text file an image, a row an object.

``class x y width height`` is a box by its middle, ``class x y x y x y ...`` a polygon, all of them
shares of the image's width and height. Rows of both kinds may be in one file.
"""

import os
from collections import Counter
from typing import Dict, List, Tuple

from .....data.images import image_size
from .....errors import UserError
from ..records import (
    DataSet,
    Object,
    Picture,
    Problems,
    claim,
    in_order,
    note_left_out,
    progress,
)
from ..shapes import box_of
from .data_yaml import DataYaml, read_data_yaml


def read_yolo(path: str, problems: Problems) -> DataSet:
    """Read a data set.

    Args:
        path (str): of its ``data.yaml``, or the folder that this is in.
        problems (Problems): gets the rows that are wrong.

    Raises:
        UserError: if ``data.yaml`` is not there or wrong, or an image cannot be read.
    """
    description = read_data_yaml(find_data_yaml(path))
    notes = Counter({"images listed more than once": description.repeated})
    owners: Dict[str, str] = {}
    pictures: Dict[str, Picture] = {}
    splits = {}
    for split, images in description.images.items():
        claims: Dict[str, str] = {}
        for image in progress(images, split):
            if image in pictures:
                notes["images that are in two splits"] += 1
                continue
            label = label_path(image)
            picture = pictures[image] = Picture(os.path.abspath(image), image_size(image))
            if os.path.isfile(label):
                picture.source = label
                claim(claims, image, label, problems)
                other = owners.setdefault(label, image)
                if other != image:
                    problems.add(label, f"would be of two images, {other} and {image}; rename one")
                picture.objects = _read_labels(picture, description, notes, problems)
        splits[split] = [pictures[image] for image in images]
    data = DataSet(description.names, in_order(splits), notes)
    folders = description.folders
    labels = [os.path.dirname(label_path(os.path.join(folder, "a.jpg"))) for folder in folders]
    note_left_out(data, [*folders, *filter(os.path.isdir, labels)], [find_data_yaml(path)])
    return data


def find_data_yaml(path: str) -> str:
    """``data.yaml`` of a folder, or the one YAML file in it; a file is itself.

    Raises:
        UserError: if there is none.
    """
    if not os.path.isdir(path):
        return path
    names = sorted(n for n in os.listdir(path) if n.lower().endswith((".yaml", ".yml")))
    for name in ("data.yaml", "data.yml", "dataset.yaml", *(names if len(names) == 1 else [])):
        if name in names:
            return os.path.join(path, name)
    raise UserError(
        f"{path} has no data.yaml, which names the classes and the folders of the images; write "
        "one with the lines 'train: images/train', 'val: images/val' and 'names: [cat, dog]'"
    )


def label_path(image: str) -> str:
    """Where Ultralytics looks for an image's labels: the last ``images`` folder is ``labels``."""
    parts = os.path.splitext(image)[0].split(os.sep)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return os.sep.join(parts) + ".txt"


def _read_labels(
    picture: Picture, description: DataYaml, notes: Counter, problems: Problems
) -> List[Object]:
    try:
        with open(picture.source, encoding="utf-8-sig") as f:
            rows = [row.split() for row in f.read().splitlines()]
    except (OSError, UnicodeDecodeError):
        problems.add(picture.source, "is not text that can be read")
        return []
    objects = []
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        where = f"{picture.source}, line {number}"
        if description.keypoints and len(row) == 5 + description.keypoints:
            notes["objects whose keypoints are left out"] += 1
            row = row[:5]
        try:
            objects.append(_read_row(row, picture.size, description.names, where))
        except ValueError as e:
            problems.add(where, str(e))
    return objects


def _read_row(row: List[str], size: Tuple[int, int], names: List[str], where: str) -> Object:
    if len(row) < 5 or len(row) % 2 == 0:
        raise ValueError(
            f"has {len(row)} numbers; write 'class x y width height', or 'class x y x y x y ...'"
        )
    try:
        index, *numbers = map(float, row)
    except ValueError:
        raise ValueError(f"has something that is no number: {' '.join(row)[:60]}") from None
    if index not in range(len(names)):
        raise ValueError(
            f"has the class {row[0]}, but data.yaml has {len(names)} names, 0 ... {len(names) - 1}"
        )
    width, height = size
    name = names[int(index)]
    if len(numbers) == 4:
        x, y, w, h = numbers
        if min(w, h) < 0:
            raise ValueError(f"has a box of negative size, {row[3]} x {row[4]}")
        box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        return Object(name, box, where=where)
    polygon = [n * (height if i % 2 else width) for i, n in enumerate(numbers)]
    return Object(name, box_of([polygon]), [polygon], where=where)
