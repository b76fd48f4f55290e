"""COCO's JSON, read by the check of the registration and written for it."""

import json
import os
from collections import Counter
from typing import Any, Dict, List

from ....data.cache.annotation_cache import check_coco_json_alone
from ....data.images import image_size
from ....errors import UserError
from .records import (
    DataSet,
    Object,
    Picture,
    Problems,
    progress,
)
from .shapes import area_of

_SPLITS = ("train", "val", "test")
_IMAGE_KEYS = ("id", "file_name", "width", "height")
_OBJECT_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


def read_coco(paths: List[str], images: List[str], problems: Problems) -> DataSet:
    """Read annotation files.

    Args:
        paths (list[str]): one to three, of the train, val and test splits.
        images (list[str]): the folder of their images, or one of each.
        problems (Problems): gets images of another size than the file says.

    Raises:
        UserError: if a file cannot be used; if their categories are not the same.
    """
    if len(paths) > len(_SPLITS):
        raise UserError(f"there are {len(paths)} files; name up to three: of train, val and test")
    if len(images) not in (1, len(paths)):
        raise UserError("--images: name the folder of the images, or one for each annotation file")
    folders = images if len(images) == len(paths) else images * len(paths)
    data = DataSet([], {})
    known: Dict[str, Picture] = {}
    for split, path, folder in zip(_SPLITS, paths, folders):
        content, names, ids = _load(path, folder, data.notes)
        if data.names and (data.names, data.ids) != (names, ids):
            raise UserError(f"{path} has other categories than {paths[0]}; they must be the same")
        data.names, data.ids = names, ids
        data.splits[split] = _pictures(content, folder, path, known, data, problems)
    return data


def _load(path: str, folder: str, notes: Counter) -> tuple:
    try:
        checked = check_coco_json_alone(path, folder)
        with open(path, encoding="utf-8") as f:
            count = len(json.load(f)["annotations"])
        with open(checked.json_file, encoding="utf-8") as f:
            content = json.load(f)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    notes["annotations that cannot be used left out"] += count - len(content["annotations"])
    return content, checked.category_names, checked.category_ids


def _pictures(
    content: Dict[str, Any],
    folder: str,
    path: str,
    known: Dict[str, Picture],
    data: DataSet,
    problems: Problems,
) -> List[Picture]:
    by_id: Dict[int, Picture] = {}
    claimed: Dict[str, int] = {}
    for record in progress(content["images"], path):
        file = os.path.abspath(os.path.join(folder, record["file_name"]))
        where = f"{path}, image {record['id']}"
        if claimed.setdefault(file, record["id"]) != record["id"]:
            problems.add(where, f"is {file}, as is image {claimed[file]}; each once")
        said, size = (record["width"], record["height"]), image_size(file)
        if said != size:
            problems.add(
                where,
                f"says {said[0]} x {said[1]} pixels, but {file} has {size[0]} x {size[1]}",
            )
        data.notes["images that are in two splits"] += file in known
        extra = {key: value for key, value in record.items() if key not in _IMAGE_KEYS}
        by_id[record["id"]] = known[file] = Picture(file, size, source=path, extra=extra)
    names = dict(zip(data.ids, data.names))
    for record in content["annotations"]:
        mask = record.get("segmentation")
        by_id[record["image_id"]].objects.append(
            Object(
                names[record["category_id"]],
                tuple(record["bbox"]),
                mask if isinstance(mask, list) else [],
                mask if isinstance(mask, dict) else None,
                bool(record.get("iscrowd", 0)),
                f"{path}, annotation {record['id']}",
                {key: value for key, value in record.items() if key not in _OBJECT_KEYS},
            )
        )
    return list(by_id.values())


def write_coco(data: DataSet, root: str, folder: str) -> List[str]:
    """Write a file a split.

    Args:
        data (DataSet): what to write.
        root (str): folder that the names of the images start from.
        folder (str): gets ``train.json`` and so on.

    Returns:
        list[str]: the paths of the files.
    """
    files = []
    ids = dict(zip(data.names, data.ids or range(1, len(data.names) + 1)))
    categories = [{"id": i, "name": name} for name, i in ids.items()]
    for split, pictures in data.splits.items():
        images, annotations = [], []
        for number, picture in enumerate(pictures, 1):
            name = os.path.relpath(picture.path, root).replace(os.sep, "/")
            width, height = picture.size
            record = {"id": number, "file_name": name, "width": width, "height": height}
            images.append({**picture.extra, **record})
            for thing in picture.objects:
                annotation = _annotation(thing, number, ids[thing.category])
                annotations.append({**annotation, "id": len(annotations) + 1})
        content = {"images": images, "annotations": annotations, "categories": categories}
        files.append(os.path.join(folder, f"{split}.json"))
        with open(files[-1], "w", encoding="utf-8") as f:
            json.dump(content, f)
    return files


def _annotation(thing: Object, image_id: int, category_id: int) -> Dict[str, Any]:
    record = {
        **thing.extra,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": _rounded(thing.box),
        "area": round(area_of(thing), 4),
        "iscrowd": int(thing.crowd),
    }
    if thing.rle is not None:
        record["segmentation"] = thing.rle
    elif thing.polygons:
        record["segmentation"] = [_rounded(polygon) for polygon in thing.polygons]
    return record


def _rounded(numbers) -> List[float]:
    # Far below what anybody can label, and well above the noise of shares times sizes.
    return [round(float(n), 4) for n in numbers]
