"""YOLO's files as Ultralytics reads and writes them: ``data.yaml``, images and label files.

Darknet's ``.data`` file (CVAT) names the same files. Without either, the names of the classes are a
line each in ``classes.txt`` (LabelImg and Label Studio), ``_darknet.labels`` (Roboflow) or
``obj.names``, anywhere in the folder of the data set, and the images are all in this folder.

A label file has a row per object: ``class x y width height`` is a box by its center,
``class x y x y x y ...`` a polygon, in fractions of the image's width and height. Rows of both
kinds may be in one file. The four corners of an oriented box are a polygon as well.

hotcoco 1.3 has ``COCO.from_yolo`` and ``to_yolo``, which do not replace this module. The reader
refuses polygons and ``names`` as a mapping; it accepts NaN, negative boxes, boxes beyond the image,
a wrong ``nc``, repeated class names, and two images with one label file; it ignores subfolders,
splits, images without labels, and the EXIF orientation. The writer supports boxes only.
"""

import os
import shutil
from collections import Counter
from typing import Any, Dict, List, NamedTuple, Set, Tuple

import yaml
from PIL import Image

from ....data.images import BadImageError, image_size, is_image_name
from ....errors import UserError, first
from ....files import files_below
from .records import (
    SPLIT_NAMES,
    DataSet,
    Object,
    Picture,
    Polygon,
    Problems,
    claim,
    common_folder,
    end_below,
    in_order,
    note_left_out,
    note_unreadable,
    progress,
    split_of,
)
from .shapes import box_of, clip_polygon, decode_rle, join_polygons, polygons_of_mask

# The extensions that all versions have in IMG_FORMATS:
# https://github.com/ultralytics/ultralytics/blob/main/ultralytics/data/utils.py
_OF_ULTRALYTICS = (".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp")


# Files that list the names of the classes, a line each.
_NAME_FILES = ("classes.txt", "_darknet.labels", "obj.names")
_MOVED = "paths that do not exist, looked up in the folder of the data set"


# ---- data.yaml ----


class DataYaml(NamedTuple):
    """The contents of a ``data.yaml``.

    Args:
        names (list[str]): class names by index.
        images (dict[str, list[str]]): image paths of ``train``, ``val`` and ``test``.
        folders (list[str]): folders that have the images.
        keypoints (int): number of keypoint values after the box in each row.
        files (list[str]): those that were read.
        notes (Counter): how many entries were left out or found elsewhere, by reason.
    """

    names: List[str]
    images: Dict[str, List[str]]
    folders: List[str]
    keypoints: int
    files: List[str]
    notes: Counter


def read_data_yaml(path: str) -> DataYaml:
    """Read a ``data.yaml``, a ``.data`` file or one with the names of the classes; list the images.

    Args:
        path (str): the file, or a folder as of :func:`find_data_yaml`.

    Raises:
        UserError: if the file cannot be read, has no names or no splits, or if a file that it names
            is missing, except for those of ``test``.
    """
    path, start = find_data_yaml(path), path
    if os.path.basename(path) in _NAME_FILES:
        return _read_names(path, start if os.path.isdir(start) else _above_splits(path))
    files = [path]
    content = _load_darknet(path, files) if path.lower().endswith(".data") else _load(path)
    names = _names(content, path)
    root = _root(content, path)
    images: Dict[str, List[str]] = {}
    folders: List[str] = []
    notes: Counter = Counter()
    for key, split in SPLIT_NAMES.items():
        if not content.get(key):
            continue
        found = []
        for entry in content[key] if isinstance(content[key], list) else [content[key]]:
            place = _place(entry, root) if isinstance(entry, str) and entry else None
            if place is not None:
                notes[_MOVED] += _direct_place(entry, root) is None
                found += _images(entry, place, root, path, key, folders, files)
            elif split == "test":  # Roboflow names it even if there is none
                notes[f"missing folder of '{key}' passed over ({entry})"] += 1
            else:
                raise UserError(
                    f"{path}: '{key}' is {entry}, but there is no such folder or list in {root}"
                )
        images.setdefault(split, []).extend(dict.fromkeys(found))
        notes["images listed more than once"] += len(found) - len(set(found))
    if not any(images.values()):
        raise UserError(f"{path} names no images: write 'train: FOLDER', and 'val:' likewise")
    return DataYaml(names, images, folders, _keypoints(content, path), files, notes)


def _read_names(path: str, root: str) -> DataYaml:
    """Read a file of names; the images are all in the folder of the data set, split by folders."""
    name = os.path.basename(path)
    files, _ = files_below(root)
    copies = [file for file in files if os.path.basename(file) == name]
    lists = [_lines(file) for file in copies]
    names = lists[0]
    other = next((file for file, found in zip(copies, lists) if found != names), None)
    if other is not None:
        raise UserError(f"{other} has other classes than {copies[0]}; they must be the same")
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path} must list the names of the classes, a line each, each once")
    images: Dict[str, List[str]] = {}
    for image in filter(is_image_name, files):
        images.setdefault(split_of(image, root) or "train", []).append(os.path.normpath(image))
    if not images:
        raise UserError(f"{root} has the file {name}, but no images")
    return DataYaml(names, images, [root], 0, copies, Counter())


def _above_splits(path: str) -> str:
    """Return the folder of a file, or the one above if it is of labels or of a split."""
    folder = os.path.dirname(path)
    while os.path.basename(folder) in ("labels", *SPLIT_NAMES):
        folder = os.path.dirname(folder)
    return folder or "."


def _lines(path: str) -> List[str]:
    """Return the lines of a text file that are not empty."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            return [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path} cannot be read as text") from None


def _load_darknet(path: str, files: List[str]) -> Dict[str, Any]:
    """Return the contents of a ``.data`` file as those of a ``data.yaml``."""
    parts = [line.partition("=") for line in _lines(path)]
    content: Dict[str, Any] = {key.strip(): value.strip() for key, _, value in parts}
    names = content.get("names") or "obj.names"
    place = _place(names, os.path.dirname(os.path.abspath(path)))
    if place is None:
        raise UserError(f"{path}: 'names' is {names}, which does not exist")
    files.append(place)
    return {**content, "names": _lines(place), "nc": content.get("classes")}


def _load(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as f:
            # All values stay strings: a class may be called "no" or "007".
            content = yaml.load(f, Loader=yaml.BaseLoader)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: is not valid YAML") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a data.yaml: it must have the keys 'train', 'val' and 'names'"
        )
    return content


def _names(content: Dict[str, Any], path: str) -> List[str]:
    names, count = content.get("names"), content.get("nc")
    if not names and isinstance(count, str) and count.isdigit() and int(count):
        return [f"class_{i}" for i in range(int(count))]  # as Ultralytics calls them
    if isinstance(names, dict):
        indices = {int(key): name for key, name in names.items() if key.isdigit()}
        if sorted(indices) != list(range(len(names))):
            raise UserError(
                f"{path}: the keys of 'names' must be 0 ... {len(names) - 1}, each once; "
                f"they are {first(names)}"
            )
        names = [indices[i] for i in range(len(indices))]
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise UserError(f"{path} has no 'names': list the classes, as 'names: [cat, dog]'")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path}: 'names' has {first(doubled)} more than once")
    if count is not None and count != str(len(names)):
        raise UserError(f"{path}: 'nc' is {count}, but there are {len(names)} 'names'")
    return names


def _keypoints(content: Dict[str, Any], path: str) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if isinstance(shape, list) and len(shape) == 2 and all(str(n).isdigit() for n in shape):
        return int(shape[0]) * int(shape[1])
    raise UserError(f"{path}: 'kpt_shape' is {shape}; write two integers, as [17, 3]")


def _root(content: Dict[str, Any], path: str) -> str:
    """Return the folder that paths are relative to: ``path``, relative to the file's folder."""
    folder = os.path.dirname(os.path.abspath(path))
    named = content.get("path")
    if not isinstance(named, str) or not named:
        return folder
    named = os.path.expanduser(named)
    for candidate in (os.path.join(folder, named), os.path.abspath(named)):
        if os.path.isdir(candidate):
            return os.path.normpath(candidate)
    return folder  # the path is of another machine, or of Ultralytics' own folder of data sets


def _images(
    entry: str, place: str, root: str, path: str, key: str, folders: List[str], files: List[str]
) -> List[str]:
    if os.path.isdir(place):
        folders.append(place)
        found, passed_over = files_below(place)
        images = list(filter(is_image_name, found))
        if not images:
            others = first((os.path.relpath(file, place) for file in found + passed_over), 3)
            there = f"; there are {others}" if others else ""
            raise UserError(f"{path}: '{key}' is {entry}, a folder without images{there}")
        return [os.path.normpath(image) for image in images]
    if is_image_name(place):
        return [os.path.normpath(place)]
    try:
        lines = _lines(place)
    except UserError:
        raise UserError(f"{path}: '{key}' is {place}, which is not a list of images") from None
    images = [_listed(line, os.path.dirname(place), root) for line in lines]
    missing = [line for line, image in zip(lines, images) if image is None]
    if missing or not images:
        what = f"names images that do not exist ({first(missing)})" if missing else "is empty"
        raise UserError(f"{place} {what}")
    files.append(place)
    folders += dict.fromkeys(map(os.path.dirname, images))
    return images


def _place(entry: str, root: str) -> str | None:
    """Return the file or folder that a path means, or None."""
    return _direct_place(entry, root) or end_below(entry, root)


def _direct_place(entry: str, root: str) -> str | None:
    entry = os.path.expanduser(entry.replace("\\", "/"))
    # Files of Roboflow are next to the folders that they call ../train/images.
    for candidate in (entry, entry.removeprefix("../")):
        candidate = os.path.join(root, candidate)
        if os.path.exists(candidate):
            return os.path.normpath(candidate)
    return None


def _listed(line: str, folder: str, root: str) -> str | None:
    line = line.replace("\\", "/")
    for start in (folder, root, os.getcwd()):
        candidate = os.path.normpath(os.path.join(start, line))
        if os.path.isfile(candidate):
            return candidate
    return end_below(line, root)


# ---- reading ----


def read_yolo(path: str, problems: Problems) -> DataSet:
    """Read a data set.

    Args:
        path (str): its ``data.yaml`` or file of class names, or the folder of it.
        problems (Problems): collects invalid rows.

    Raises:
        UserError: if ``data.yaml`` is missing or invalid, or if an image cannot be read.
    """
    description = read_data_yaml(path)
    notes = Counter(description.notes)
    owners: Dict[str, str] = {}
    pictures: Dict[str, Picture] = {}
    unreadable: List[str] = []
    splits = {}
    for split, images in description.images.items():
        claims: Dict[str, str] = {}
        for image in progress(images, split):
            if image in pictures:
                notes["images that are in two splits"] += 1
                continue
            label = label_path(image)
            try:
                picture = Picture(os.path.abspath(image), image_size(image))
            except BadImageError as e:
                if os.path.isfile(label):
                    problems.add(label, str(e))
                elif image not in unreadable:
                    unreadable.append(image)
                continue
            pictures[image] = picture
            if os.path.isfile(label):
                picture.source = label
                claim(claims, image, label, problems)
                other = owners.setdefault(label, image)
                if other != image:
                    problems.add(label, f"would be of two images, {other} and {image}; rename one")
                picture.objects = _read_labels(picture, description, notes, problems)
        splits[split] = [pictures[image] for image in images if image in pictures]
    note_unreadable(notes, unreadable)
    data = DataSet(description.names, in_order(splits), notes)
    data.count_read(pictures.values())
    folders = description.folders
    labels = [os.path.dirname(label_path(os.path.join(folder, "a.jpg"))) for folder in folders]
    note_left_out(
        data,
        [*folders, *filter(os.path.isdir, labels)],
        [*description.files, *unreadable],
        {"label files without an image": is_label_file},
    )
    return data


def is_label_file(path: str) -> bool:
    """Whether a file is empty or begins with a row of a label file."""
    if not path.endswith(".txt"):
        return False
    try:
        with open(path, encoding="utf-8-sig") as f:
            row = [float(number) for number in f.readline().split()]
    except (OSError, ValueError):
        return False
    return not row or len(row) >= 5


def find_data_yaml(path: str) -> str:
    """Return the file that describes the data set in a folder.

    It is the ``data.yaml`` of the folder, its only YAML file or the only one with names and splits,
    the ``data.yaml`` of the only folder below that has one, its ``.data`` file, or a file of class
    names. A file is returned as it is.

    Raises:
        UserError: if there is no such file, or more than one.
    """
    if not os.path.isdir(path):
        return path
    folder = os.path.normpath(path)
    files = sorted(files_below(folder)[0], key=lambda file: (file.count(os.sep), file))
    own = [f for f in files if os.path.dirname(f) == folder]
    yamls = [f for f in own if f.lower().endswith((".yaml", ".yml"))]
    named = [f for f in files if os.path.basename(f) in ("data.yaml", "data.yml", "dataset.yaml")]
    if len(yamls) > 1:
        yamls = [f for f in yamls if f in named] or list(filter(_is_data_yaml, yamls))
    if len(yamls) > 1 and yamls[0] in named:
        yamls = yamls[:1]
    darknet = [f for f in files if f.lower().endswith(".data") and _is_darknet(f)]
    found = yamls or named or darknet
    if len(found) > 1:
        raise UserError(f"{path} has several data sets; name the file of one: {first(found)}")
    found += [f for name in _NAME_FILES for f in files if os.path.basename(f) == name]
    if found:
        return found[0]
    raise UserError(
        f"{path} has no data.yaml, which names the classes and the folders of the images; write "
        "one with the lines 'train: images/train', 'val: images/val' and 'names: [cat, dog]'"
    )


def _is_data_yaml(path: str) -> bool:
    try:
        content = _load(path)
    except UserError:
        return False
    return bool({"names", "nc"} & content.keys() and SPLIT_NAMES.keys() & content.keys())


def _is_darknet(path: str) -> bool:
    try:
        keys = {line.partition("=")[0].strip() for line in _lines(path)}
    except UserError:
        return False
    return "names" in keys and bool(SPLIT_NAMES.keys() & keys)


def label_path(image: str) -> str:
    """Return the label file of an image: the last folder called ``images`` becomes ``labels``."""
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
        problems.add(picture.source, "cannot be read as text")
        return []
    objects = []
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        picture.num_read += 1
        where = f"{picture.source}, line {number}"
        try:
            if description.keypoints and len(row) != 5:
                if len(row) != 5 + description.keypoints:
                    numbers = f"5 or {5 + description.keypoints}"
                    raise ValueError(f"has {len(row)} numbers, not the {numbers} of 'kpt_shape'")
                notes["objects whose keypoints are left out"] += 1
                row = row[:5]
            objects.append(_read_row(row, picture.size, description.names, where))
        except ValueError as e:
            problems.add(where, str(e))
    return objects


def _read_row(row: List[str], size: Tuple[int, int], names: List[str], where: str) -> Object:
    if len(row) < 5 or len(row) % 2 == 0:
        raise ValueError(
            f"has {len(row)} numbers; write 'class x y width height', or 'class x y x y x y ...'; "
            "keypoints need 'kpt_shape' in data.yaml"
        )
    try:
        index, *numbers = map(float, row)
    except ValueError:
        raise ValueError(f"has a value that is not a number: {' '.join(row)[:60]}") from None
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


# ---- writing ----


def write_yolo(data: DataSet, folder: str, link: bool) -> DataSet:
    """Write ``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``.

    If any object has a mask, all rows are polygons and boxes have four corners, because Ultralytics
    reads the boxes of a file with both as polygons of two points. YOLO has one polygon per object:
    several are joined by bridges of zero width. It has no crowds: they are left out.

    Args:
        data (DataSet): the data set; its notes count everything left out or changed.
        folder (str): existing folder to write to.
        link (bool): link the images instead of copying them.

    Returns:
        DataSet: the contents of the files, for a comparison when they are read again.
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
    """Return a unique name under which readers find the image and its labels.

    The folder above the split must be the last one called ``images``, which readers replace to find
    the labels. Hidden files are ignored by readers, and label files do not have the extension.
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
    """Return the objects as YOLO represents them: no crowds, and one polygon each or only boxes."""
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
    for split in ("train", "val"):  # Ultralytics requires both
        names.setdefault(split, next(iter(names.values())))
        data.splits.setdefault(split, next(iter(data.splits.values())))
    content = {**names, "names": dict(enumerate(data.names))}
    with open(os.path.join(folder, "data.yaml"), "w", encoding="utf-8") as f:
        yaml.safe_dump(content, f, sort_keys=False, allow_unicode=True)
