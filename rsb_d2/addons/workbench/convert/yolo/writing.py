"""YOLO's folders as Ultralytics reads them: images, labels and ``data.yaml``.

Where any object has a mask, all rows are polygons, a box one of four corners: of a file with both
Ultralytics reads the boxes as polygons of two points. YOLO has one polygon an object, so several
are joined by bridges of no width; and no crowds, which are left out.
"""

import os
import shutil
from typing import Dict, List, Set, Tuple

import yaml
from PIL import Image

from .....data.images import is_image_name
from ..records import DataSet, Object, Picture, Polygon, common_folder
from ..shapes import box_of, clip_polygon, decode_rle, join_polygons, polygons_of_mask
from .reading import label_path

# https://github.com/ultralytics/ultralytics/blob/main/ultralytics/data/utils.py, IMG_FORMATS, what
# all its versions have.
_OF_ULTRALYTICS = (".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")


def write_yolo(data: DataSet, folder: str, link: bool) -> DataSet:
    """Write a data set.

    Args:
        data (DataSet): what to write; what is left out is added to its notes.
        folder (str): gets ``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``.
        link (bool): link the images, and do not copy them.

    Returns:
        DataSet: what the files hold, for a comparison with what is read from them.
    """
    things = [thing for picture in data.pictures() for thing in picture.objects]
    with_masks = any(thing.polygons or thing.rle is not None for thing in things)
    index = {name: i for i, name in enumerate(data.names)}
    written = DataSet(data.names, {})
    for split, pictures in data.splits.items():
        root = common_folder(pictures)
        taken: Set[str] = set()
        written.splits[split] = []
        for picture in pictures:
            image = os.path.join(folder, "images", split, _name(picture, root, taken, data))
            label = label_path(image)
            for path in (image, label):
                os.makedirs(os.path.dirname(path), exist_ok=True)
            _put_image(picture, image, link)
            objects = _objects(picture, with_masks, data)
            with open(label, "w") as f:
                f.writelines(f"{_row(thing, picture, index)}\n" for thing in objects)
            written.splits[split].append(Picture(image, picture.size, objects))
    _write_data_yaml(written, folder)
    return written


def _name(picture: Picture, root: str, taken: Set[str], data: DataSet) -> str:
    """A name under which readers find the image, and its labels by it, and that no other has.

    Labels are looked for in place of the last folder called ``images``, which must be the one above
    the split, by the name without its ending; hidden files are passed over.
    """
    path, ending = os.path.splitext(os.path.relpath(picture.path, root))
    *folders, name = (part.lstrip(".") or "_" for part in path.split(os.sep))
    stem = os.path.join(*(part for part in folders if part != "images"), name)
    data.notes["hidden images renamed"] += name != os.path.basename(path)
    if not is_image_name(f"a{ending}"):
        with Image.open(picture.path) as image:
            ending = f"{ending}.{image.format.lower()}"
        data.notes["images renamed, as their endings are not those of images"] += 1
    if ending.lower() not in _OF_ULTRALYTICS:
        data.notes[f"images that Ultralytics does not read, ending in {ending.lower()}"] += 1
    candidate, number = stem, 1
    while candidate in taken:
        number += 1
        candidate = f"{stem}_{number}"
    data.notes["images renamed, as another has the same name"] += candidate != stem
    taken.add(candidate)
    return candidate + ending


def _put_image(picture: Picture, path: str, link: bool) -> None:
    if picture.embedded:
        with open(path, "wb") as f:
            f.write(picture.embedded)
    elif link:
        os.symlink(picture.path, path)
    else:
        shutil.copyfile(picture.path, path)


def _objects(picture: Picture, with_masks: bool, data: DataSet) -> List[Object]:
    """The objects as YOLO can hold them: without crowds, of one polygon each, or of boxes alone."""
    objects = []
    for thing in picture.objects:
        data.notes["objects whose keypoints are left out"] += bool(thing.record.get("keypoints"))
        if thing.crowd:
            data.notes["crowds left out"] += 1
        elif with_masks:
            polygon = _polygon(thing, picture.size, data)
            objects.append(Object(thing.category, box_of([polygon]), [polygon]))
        else:
            objects.append(Object(thing.category, thing.box))
    return objects


def _row(thing: Object, picture: Picture, index: Dict[str, int]) -> str:
    width, height = picture.size
    if thing.polygons:
        numbers = [n / (height if i % 2 else width) for i, n in enumerate(thing.polygons[0])]
    else:
        x, y, w, h = thing.box
        numbers = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    shares = " ".join(f"{min(max(n, 0.0), 1.0):.8g}" for n in numbers)
    return f"{index[thing.category]} {shares}"


def _polygon(thing: Object, size: Tuple[int, int], data: DataSet) -> Polygon:
    polygons = thing.polygons
    if thing.rle is not None:
        polygons, holes = polygons_of_mask(decode_rle(thing.rle))
        data.notes["masks drawn by their outlines"] += 1
        data.notes["masks whose holes are filled"] += holes
    polygons = [p for p in (clip_polygon(p, *size) for p in polygons) if len(p) >= 6]
    if not polygons:
        x, y, w, h = thing.box
        data.notes["boxes written as polygons of four corners"] += 1
        return [x, y, x + w, y, x + w, y + h, x, y + h]
    data.notes["objects of several polygons joined to one"] += len(polygons) > 1
    return join_polygons(polygons)


def _write_data_yaml(data: DataSet, folder: str) -> None:
    names = {split: f"images/{split}" for split in data.splits}
    for split in ("train", "val"):  # without which Ultralytics does not start
        names.setdefault(split, next(iter(names.values())))
        data.splits.setdefault(split, next(iter(data.splits.values())))
    content = {**names, "names": dict(enumerate(data.names))}
    with open(os.path.join(folder, "data.yaml"), "w", encoding="utf-8") as f:
        yaml.safe_dump(content, f, sort_keys=False, allow_unicode=True)
