"""COCO's JSON, read and written with the checks of a training.

A conversion from COCO to COCO keeps all contents: other keys of the file, and every image and
annotation with ids and order. It changes only splits, ids that two files share, image names if the
files have different image folders, objects that ``--clip`` cuts, and what :mod:`.coco_repair` does.
"""

import codecs
import itertools
import json
import logging
import os
import tempfile
from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, Sequence, Tuple

from ....data.coco_check import check_coco_json, correct_masks, drop_bad_boxes
from ....data.images import image_size
from ....errors import UserError, first
from .coco_repair import load, repair
from .records import DataSet, Object, Picture, Problems, note_left_out, progress
from .shapes import area_of

logger = logging.getLogger("rsb_d2.data.coco_check")

_SPLITS = ("train", "val", "test")


def read_coco(
    paths: List[str], images: List[str], problems: Problems, splits: Sequence[str] = _SPLITS
) -> DataSet:
    """Read annotation files.

    Args:
        paths (list[str]): one to three files, of one split each.
        images (list[str]): the folder of all images, or one folder per file.
        problems (Problems): collects images of another size than stated.
        splits (sequence of str): names of the splits of the files.

    Raises:
        UserError: if a file cannot be used, or if the files have different categories.
    """
    if len(paths) > len(_SPLITS):
        raise UserError(f"there are {len(paths)} files; name up to three: of train, val and test")
    if len(images) not in (1, len(paths)):
        raise UserError("--images: name the folder of the images, or one for each annotation file")
    folders = [os.path.abspath(folder) for folder in images]
    data = DataSet([], {}, root=os.path.commonpath(folders))
    positions = itertools.count()
    with tempfile.TemporaryDirectory() as temporary:
        checked = _check_all(paths, folders, data.notes, temporary)
    for split, path, folder, (content, names, ids) in zip(
        splits, paths, itertools.cycle(folders), checked
    ):
        if data.names and (data.names, data.ids) != (names, ids):
            raise UserError(f"{path} has other categories than {paths[0]}; they must be the same")
        data.names, data.ids = names, ids
        groups = [c for c in content["categories"] if c["id"] not in ids]
        content["categories"] = [c for c in content["categories"] if c not in groups]
        if groups:
            named = first(c["name"] for c in groups)
            data.notes[f"categories that only group others left out ({named})"] = len(groups)
        data.images_read += len(content["images"])
        data.objects_read += len(content["annotations"])
        data.headers[split] = {**content, "images": None, "annotations": None}
        data.splits[split] = _pictures(content, folder, path, data, problems, positions)
    paths_of = Counter(p.path for pictures in data.splits.values() for p in pictures)
    data.notes["images that are in two splits"] = paths_of.total() - len(paths_of)
    note_left_out(data, folders, paths)
    return data


def _check_all(
    paths: List[str], folders: List[str], notes: Counter, temporary: str
) -> List[Tuple[Dict[str, Any], List[str], List[int]]]:
    """Repair and check files; return the contents, class names and category ids of each."""
    contents, read = [], []
    for number, (path, folder) in enumerate(zip(paths, itertools.cycle(folders))):
        content = load(path)
        done = repair(content, folder)
        notes.update(done)
        if done or _has_mark(path):
            path = os.path.join(temporary, str(number), os.path.basename(path))
            os.mkdir(os.path.dirname(path))
            with open(path, "w", encoding="utf-8") as f:
                json.dump(content, f)
        contents.append(content)
        read.append(path)
    found = []
    for path, copy, folder, content in zip(paths, read, itertools.cycle(folders), contents):
        try:
            checked = check_coco_json(copy, folder, with_masks=False, others=read)
        except UserError as e:
            raise UserError(f"{path}: {e}".replace(copy, path)) from None
        except OSError as e:
            raise UserError(f"{path} cannot be read: {e.strerror}") from None
        for level, message in checked.messages:
            logger.log(level, message.replace(copy, path))
        found.append((content, checked.category_names, checked.category_ids))
    return found


def _has_mark(path: str) -> bool:
    with open(path, "rb") as f:
        return f.read(3) == codecs.BOM_UTF8


def _pictures(
    content: Dict[str, Any],
    folder: str,
    path: str,
    data: DataSet,
    problems: Problems,
    positions: Iterator[int],
) -> List[Picture]:
    by_id: Dict[int, Picture] = {}
    claimed: Dict[str, int] = {}
    for record in progress(content["images"], path):
        if not os.path.isfile(os.path.join(folder, record["file_name"])):  # written on Windows
            record = {**record, "file_name": record["file_name"].replace("\\", "/")}
        file = os.path.abspath(os.path.join(folder, record["file_name"]))
        where = f"{path}, image {record['id']}"
        if claimed.setdefault(file, record["id"]) != record["id"]:
            problems.add(where, f"is {file}, as is image {claimed[file]}; each once")
        stated, size = (record["width"], record["height"]), image_size(file)
        if stated != size:
            problems.add(
                where,
                f"says {stated[0]} x {stated[1]} pixels, but {file} has {size[0]} x {size[1]}",
            )
        if folder != data.root:
            name = os.path.join(os.path.relpath(folder, data.root), record["file_name"])
            record = {**record, "file_name": name.replace(os.sep, "/")}
        by_id[record["id"]] = Picture(file, size, source=path, record=record)
    sizes = {i: [p.size[1], p.size[0]] for i, p in by_id.items()}
    usable, _ = drop_bad_boxes(content["annotations"], sizes)
    unusable = len(content["annotations"]) - len(usable)
    data.notes["annotations that cannot be used left out"] += unusable
    # The usable masks, along with the unchanged annotations.
    corrected, _, changed = correct_masks([dict(a) for a in usable], sizes, with_masks=False)
    data.notes["masks that cannot be used, in part or at all"] += sum(changed.values())
    names = dict(zip(data.ids, data.names))
    for record, with_mask in zip(usable, corrected):
        mask = with_mask.get("segmentation")
        by_id[record["image_id"]].objects.append(
            Object(
                names[record["category_id"]],
                tuple(record["bbox"]),
                mask if isinstance(mask, list) else [],
                mask if isinstance(mask, dict) else None,
                bool(record.get("iscrowd", 0) or record.get("ignore", 0)),
                f"{path}, annotation {record['id']}",
                record,
                next(positions),
            )
        )
    return list(by_id.values())


def write_coco(data: DataSet, root: str, folder: str) -> None:
    """Write a file per split: ``train.json`` and so on.

    Args:
        data (DataSet): the data set; its notes count ids that had to change.
        root (str): folder that image names are relative to.
        folder (str): existing folder to write to.
    """
    ids = dict(zip(data.names, data.ids or range(1, len(data.names) + 1)))
    header = {
        "images": None,
        "annotations": None,
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    for split, pictures in data.splits.items():
        images, objects = [], []
        for image_id, picture in zip(_ids((p.record for p in pictures), data, "image"), pictures):
            images.append({**_image(picture, root), "id": image_id})
            objects += [(thing, image_id) for thing in picture.objects]
        objects.sort(key=lambda pair: pair[0].position)
        new_ids = _ids((thing.record for thing, _ in objects), data, "annotation")
        annotations = [
            {**_annotation(thing, ids[thing.category]), "id": new_id, "image_id": image_id}
            for new_id, (thing, image_id) in zip(new_ids, objects)
        ]
        content = {**data.headers.get(split, header), "images": images, "annotations": annotations}
        with open(os.path.join(folder, f"{split}.json"), "w", encoding="utf-8") as f:
            json.dump(content, f)


def merge_headers(headers: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Merge the contents of several files other than images and annotations.

    Args:
        headers (list[dict]): one or more values of :attr:`DataSet.headers`.

    Returns:
        dict: all keys with their first values; lists are joined, lists of records (``licenses``)
        by ids.

    Raises:
        UserError: if two records with the same id differ.
    """
    merged: Dict[str, Any] = {}
    for header in headers:
        for key, value in header.items():
            if isinstance(value, list) and isinstance(merged.get(key), list):
                merged[key] = _join(merged[key], value, key)
            else:
                merged.setdefault(key, value)
    return merged


def _join(entries: List[Any], others: List[Any], key: str) -> List[Any]:
    def name(entry: Any) -> str:
        return json.dumps(entry.get("id", entry) if isinstance(entry, dict) else entry)

    known = {name(entry): entry for entry in entries}
    for entry in others:
        if known.get(name(entry), entry) != entry:
            raise UserError(
                f"--split: the files have different '{key}' of the id {name(entry)}; make them "
                "the same, or convert the files without --split"
            )
    return entries + [entry for entry in others if name(entry) not in known]


def _ids(records: Iterable[Dict[str, Any]], data: DataSet, what: str) -> List[int]:
    """Return unique ids of records, with new ones for missing and repeated ids."""
    wanted = [record.get("id") for record in records]
    new_ids = itertools.count(max((i for i in wanted if i is not None), default=0) + 1)
    ids: Dict[int, None] = {}
    for i in wanted:
        data.notes[f"{what} ids changed, as two files have the same"] += i in ids
        ids[next(new_ids) if i is None or i in ids else i] = None
    return list(ids)


def _image(picture: Picture, root: str) -> Dict[str, Any]:
    if picture.record:
        return picture.record
    width, height = picture.size
    name = os.path.relpath(picture.path, root).replace(os.sep, "/")
    return {"id": None, "file_name": name, "width": width, "height": height}


def _annotation(thing: Object, category_id: int) -> Dict[str, Any]:
    if thing.record and not thing.is_cut:
        return thing.record
    others = {key: value for key, value in thing.record.items() if key != "segmentation"}
    record = {
        **{"id": None, "image_id": None, **others},
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
    # Finer than anybody labels, and coarser than rounding errors of fractions times sizes.
    return [round(float(n), 4) for n in numbers]
