"""VIA (VGG Image Annotator) 1 and 2, which hotcoco does not read: regions in a JSON or CSV file.

The file is a project, or the annotations exported as JSON or CSV. Circles and ellipses become
polygons of 64 corners. Points and open polylines are left out. The class of a region is one of its
attributes: the only one, or one that is called ``class``, ``label`` and the like.
"""

import csv
import io
import json
import os
from collections import Counter
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ....errors import UserError, first
from .records import (
    DataSet,
    ImageFinder,
    Object,
    Picture,
    Problems,
    claim,
    files_in,
    in_order,
    is_number,
    note_left_out,
    progress,
    split_in_name,
)
from .shapes import box_of, ellipse

_CLASS_ATTRIBUTES = ("class", "label", "category", "name", "type", "object", "species")
_HEADER = ("filename", "region_shape_attributes", "region_attributes")
_NOTE = "points and lines left out"

Region = Tuple[Object, Dict[str, Any]]  # without a class, and with its attributes


def is_via(content: Any) -> bool:
    """Whether the contents of a JSON file are a project or annotations of VIA 1 or 2."""
    if not isinstance(content, dict):
        return False
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, dict):
        return False
    entry = next(iter(entries.values()), None)
    return isinstance(entry, dict) and {"filename", "regions"} <= entry.keys()


def is_via_csv(path: str) -> bool:
    """Whether the first line of a file is that of VIA's CSV files."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            return set(_HEADER) <= set(f.readline().strip().lstrip("#").split(","))
    except (OSError, UnicodeDecodeError):
        return False


def read_via(
    path: str, images: str, attribute: str, classes: Sequence[str], problems: Problems
) -> DataSet:
    """Read a data set.

    Args:
        path (str): a JSON or CSV file, or a folder of them, whose names or subfolders may name
            splits, as ``via_val.json``.
        images (str): folder of the images; ``""`` for that of the file.
        attribute (str): the attribute that is the class; ``""`` to choose it.
        classes (sequence of str): the class of regions without attributes, if it is only one.
        problems (Problems): collects mistakes in the files.

    Raises:
        UserError: if there is no file of VIA, or if the attribute of the class is not clear.
    """
    root = path if os.path.isdir(path) else os.path.dirname(path) or "."
    files = files_in(path, (".json", ".csv")) if os.path.isdir(path) else [path]
    finder = ImageFinder(root, images)
    notes: Counter = Counter()
    claims: Dict[str, str] = {}
    pictures: List[Picture] = []
    regions: List[Region] = []
    used = []
    for file in files:
        entries = _load(file)
        used += [file] if entries else []
        for place, name, found in progress(entries, file):
            image, size = finder.find(place, name, problems)
            if image is None or not claim(claims, image, place, problems):
                continue
            picture = Picture(image, size, source=file, num_read=len(found))
            pictures.append(picture)
            for number, region in enumerate(found, 1):
                where = f"{file}, {name}, region {number}"
                try:
                    thing = _read_shape(region["shape_attributes"], where)
                except ValueError as e:
                    problems.add(where, str(e))
                    continue
                if thing is None:
                    notes[_NOTE] += 1
                    continue
                picture.objects.append(thing)
                regions.append((thing, region["region_attributes"]))
    problems.stop_if_any()
    if not pictures:
        raise UserError(f"{path} has no images with regions of VIA 1 or 2")
    _set_classes(regions, path, attribute, classes, problems)
    names = sorted({thing.category for thing, _ in regions})
    splits: Dict[str, List[Picture]] = {}
    for picture in pictures:
        split = split_in_name(picture.source, root) if os.path.isdir(path) else "train"
        splits.setdefault(split, []).append(picture)
    data = DataSet(names, in_order(splits), notes)
    data.count_read(pictures)
    note_left_out(data, [root, images] if images else [root], used)
    return data


def _load(file: str) -> List[Tuple[str, str, List[Dict[str, Any]]]]:
    """Return the file with a place in it, the image name and the regions of each image."""
    try:
        if file.lower().endswith(".csv"):
            return list(_of_csv(file)) if is_via_csv(file) else []
        with open(file, encoding="utf-8-sig") as f:
            content = json.load(f)
        return list(_of_json(content, file)) if is_via(content) else []
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError, csv.Error) as e:
        raise UserError(f"{file} is truncated or not valid ({str(e)[:80]})") from None
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{file} has regions that are not those of VIA 1 or 2") from None


def _of_json(content: Dict[str, Any], file: str) -> Iterator[tuple]:
    for key, entry in content.get("_via_img_metadata", content).items():
        regions = entry["regions"]
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1
        if not isinstance(entry["filename"], str):
            raise TypeError
        yield f"{file}, {key}", entry["filename"], [dict(_checked(region)) for region in regions]


def _of_csv(file: str) -> Iterator[tuple]:
    regions: Dict[str, List[Dict[str, Any]]] = {}
    with open(file, encoding="utf-8-sig", newline="") as f:
        text = f.read().removeprefix("#")  # of VIA 1
    for row in csv.DictReader(io.StringIO(text, newline="")):
        found = regions.setdefault(row["filename"], [])
        shape = json.loads(row["region_shape_attributes"])
        if shape:  # {} for an image without regions
            attributes = json.loads(row["region_attributes"])
            found.append(_checked(dict(shape_attributes=shape, region_attributes=attributes)))
    for name, found in regions.items():
        yield f"{file}, {name}", name, found


def _checked(region: Dict[str, Any]) -> Dict[str, Any]:
    if not all(isinstance(region[key], dict) for key in ("shape_attributes", "region_attributes")):
        raise TypeError
    return region


def _read_shape(shape: Dict[str, Any], where: str) -> Object | None:
    kind = shape.get("name")
    if kind == "point":
        return None
    if kind == "rect":
        return Object("", tuple(_numbers(shape, "x", "y", "width", "height")), where=where)
    if kind in ("circle", "ellipse"):
        x, y = _numbers(shape, "cx", "cy")
        radii = _numbers(shape, "r", "r") if kind == "circle" else _numbers(shape, "rx", "ry")
        polygon, box = ellipse(x, y, *radii, angle=_numbers({"theta": 0, **shape}, "theta")[0])
        return Object("", box, [polygon], where=where)
    if kind not in ("polygon", "polyline"):
        raise ValueError(f"is a shape called {kind}, which is not supported")
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if not (isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys)):
        raise ValueError("has no 'all_points_x' and 'all_points_y' of the same length")
    points = [_numbers({"x": x, "y": y}, "x", "y") for x, y in zip(xs, ys)]
    if kind == "polyline" and (len(points) < 4 or points[0] != points[-1]):
        return None
    if len(points) < 3:
        raise ValueError(f"is a polygon of {len(points)} points, but needs three or more")
    polygon = [n for point in points for n in point]
    return Object("", box_of([polygon]), [polygon], where=where)


def _numbers(shape: Dict[str, Any], *keys: str) -> List[float]:
    wrong = [key for key in keys if not is_number(shape.get(key))]
    if wrong:
        raise ValueError(f"has no number '{wrong[0]}'")
    return [float(shape[key]) for key in keys]


# ---- classes ----


def _set_classes(
    regions: List[Region], path: str, attribute: str, classes: Sequence[str], problems: Problems
) -> None:
    known = list(dict.fromkeys(key for _, attributes in regions for key in attributes))
    if not known and len(classes) == 1:
        for thing, _ in regions:
            thing.category = classes[0]
        return
    key = attribute or _attribute_of_class(regions, known, path)
    if regions and key not in known:
        raise UserError(f"--attribute: the regions of {path} have {first(known)}, not {key}")
    for thing, attributes in regions:
        thing.category = _class_in(attributes, key)
        if not thing.category:
            problems.add(thing.where, f"has no class: its attribute '{key}' is missing or not one")


def _attribute_of_class(regions: List[Region], known: List[str], path: str) -> str:
    if len(known) == 1:
        return known[0]
    if regions and not known:
        raise UserError(
            f"the regions of {path} have no attributes; name their only class with --classes"
        )
    clear = [key for name in _CLASS_ATTRIBUTES for key in known if key.lower() == name]
    values = {tuple(_class_in(attributes, key) for _, attributes in regions) for key in clear}
    if len(values) != 1 and regions:
        raise UserError(
            f"the regions of {path} have the attributes {first(known)}; name the one that is "
            "their class with --attribute"
        )
    return clear[0] if clear else ""


def _class_in(attributes: Dict[str, Any], key: str) -> str:
    """Return a text, or the only checked box of several."""
    value = attributes.get(key, "")
    if isinstance(value, dict):
        checked = [name for name, is_checked in value.items() if is_checked is True]
        value = checked[0] if len(checked) == 1 else ""
    return str(value).strip() if type(value) in (str, int) else ""
