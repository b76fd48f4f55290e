"""Pascal VOC: an XML file per image; the corners of boxes are pixels, counted from 1.

A box includes the pixels ``xmin`` and ``xmax``: it begins at ``xmin - 1`` and its width is
``xmax - xmin + 1``, as in Detectron2's own reader. ``difficult`` objects become crowds, which are
neither trained on nor counted, as in VOC's own evaluation.

hotcoco 1.3 has ``COCO.from_voc``, with equal boxes. It does not replace this module: it ignores
splits, ``difficult`` and images without an XML file; it accepts boxes beyond the image, NaN,
missing images, sizes other than the image's, repeated objects, and XML files that are not VOC.
"""

import os
from collections import Counter
from typing import Dict, List, Tuple
from xml.etree import ElementTree

from ....errors import UserError, first
from .records import (
    SPLIT_NAMES,
    DataSet,
    ImageFinder,
    Object,
    Picture,
    Problems,
    claim,
    files_in,
    in_order,
    note_left_out,
    progress,
)

_LISTS_FOLDER = ("ImageSets", "Main")


def read_voc(path: str, images: str, problems: Problems) -> DataSet:
    """Read a data set.

    Args:
        path (str): a folder with ``Annotations`` and ``JPEGImages`` or a folder above it, a
            folder with XML files and images, or an XML file. Splits are those of
            ``ImageSets/Main``, or otherwise folders called ``train``, ``val`` and ``test``.
        images (str): folder of the images; ``""`` for those of :class:`ImageFinder`.
        problems (Problems): collects mistakes in the files.

    Raises:
        UserError: if there is no XML file, if there are several data sets in a folder, or if an
            image cannot be read.
    """
    given, path = path, _data_set_in(path)
    root = path if os.path.isdir(path) else os.path.dirname(path) or "."
    files = files_in(path, (".xml",)) if os.path.isdir(path) else [path]
    if not files:
        raise UserError(f"{path} has no XML files in it")
    finder = ImageFinder(root, images)
    notes: Counter = Counter()
    claims: Dict[str, str] = {}
    pictures: List[Picture] = []
    others: List[str] = []
    for file in progress(files, "XML files"):
        element = _load(file, problems)
        if element is None:
            continue
        if element.tag != "annotation":
            others.append(file)
            continue
        picture = _read_file(element, file, finder, notes, problems)
        if picture is not None and claim(claims, picture.path, file, problems):
            pictures.append(picture)
    problems.stop_if_any()
    if not pictures:
        raise UserError(
            f"{others[0]} is not Pascal VOC, whose files begin with <annotation>; export the data "
            "as Pascal VOC or in COCO's format, as CVAT can"
        )
    if os.path.isdir(path):
        pictures += finder.unlabelled(claims, notes)
    names = sorted({thing.category for picture in pictures for thing in picture.objects})
    lists, used = _read_lists(root)
    data = DataSet(names, {"train": pictures}, notes)
    data.count_read(pictures)
    named = first((os.path.relpath(file, root) for file in others), 3)
    notes[f"XML files that are not Pascal VOC left out ({named})"] += len(others)
    if os.path.isdir(path):
        folders = [given, path, *([images] if images else [])]
        note_left_out(data, folders, [*used, *others, *finder.unreadable])
    splits = _by_lists(pictures, root, lists, notes) if lists else finder.by_folder(pictures)
    data.splits = in_order(splits)
    return data


def _data_set_in(path: str) -> str:
    """Return the only folder below a folder that has lists of images, as VOC2007 in VOCdevkit."""
    if not os.path.isdir(path) or os.path.isdir(os.path.join(path, "Annotations")):
        return path
    above, name = os.path.split(os.path.abspath(path))
    if name == "Annotations" and os.path.isdir(os.path.join(above, *_LISTS_FOLDER)):
        return above
    ending = os.path.join(os.sep, *_LISTS_FOLDER)
    lists = {os.path.dirname(file) for file in files_in(path, (".txt",))}
    found = sorted(f.removesuffix(ending) for f in lists if f.endswith(ending))
    if len(found) > 1:
        raise UserError(f"{path} has several data sets; name one of {first(found)}")
    return found[0] if found else path


def _load(file: str, problems: Problems) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as e:
        problems.add(file, f"is truncated or not XML ({e})")
    except OSError as e:
        problems.add(file, f"cannot be read: {e.strerror}")
    return None


def _read_file(
    root: ElementTree.Element, file: str, finder: ImageFinder, notes: Counter, problems: Problems
) -> Picture | None:
    image, size = finder.find(file, (root.findtext("filename") or "").strip(), problems)
    if image is None:
        return None
    stated = tuple(_integer(root.findtext(f"size/{key}")) for key in ("width", "height"))
    if all(stated) and stated != size:  # some tools write 0
        problems.add(file, finder.other_size(image, stated, size))
        return None
    elements = root.findall("object")
    picture = Picture(image, size, source=file, num_read=len(elements))
    for number, element in enumerate(elements, 1):
        where = f"{file}, object {number}"
        try:
            thing = _read_object(element, where)
        except ValueError as e:
            problems.add(where, str(e))
            continue
        if thing.box[2:] == (1, 1):
            notes["boxes of one pixel left out"] += 1  # a click instead of a box
            continue
        picture.objects.append(thing)
        notes["difficult objects made crowds: not trained on, not counted"] += thing.crowd
        notes["boxes that begin at 0, where VOC begins at 1"] += min(thing.box[:2]) == -1
        notes["polygons left out"] += element.find("polygon") is not None
    return picture


def _read_object(element: ElementTree.Element, where: str) -> Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no <name>")
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(text) for text in texts)
    except (TypeError, ValueError):
        raise ValueError("has no <bndbox> with xmin, ymin, xmax and ymax") from None
    if x2 < x1 or y2 < y1:
        raise ValueError(f"has its corners in the wrong order: {', '.join(map(str, texts))}")
    crowd = (element.findtext("difficult") or "").strip() in ("1", "true", "True")
    return Object(name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), crowd=crowd, where=where)


def _integer(text: str | None) -> int:
    try:
        return round(float(text or 0))
    except (ValueError, OverflowError):
        return 0


def _read_lists(root: str) -> Tuple[Dict[str, List[str]], List[str]]:
    """Return the lines of the lists by split, and the paths of the lists."""
    folder = os.path.join(root, *_LISTS_FOLDER)
    files = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    splits = {n: SPLIT_NAMES.get(n[:-4].lower(), "") for n in files if n.lower().endswith(".txt")}
    if not {"train", "val"} & set(splits.values()) and "trainval.txt" in splits:
        splits["trainval.txt"] = "train"  # as of VOC2007, with its test set
    lists: Dict[str, List[str]] = {}
    used = [os.path.join(folder, name) for name, split in splits.items() if split]
    for file in used:
        with open(file, encoding="utf-8-sig", errors="replace") as f:
            lines = [line.strip() for line in f if line.strip()]
        lists.setdefault(splits[os.path.basename(file)], []).extend(lines)
    return lists, used


def _by_lists(
    pictures: List[Picture], root: str, lists: Dict[str, List[str]], notes: Counter
) -> Dict[str, List[Picture]]:
    by_stem: Dict[str, List[Picture]] = {}  # without the folder, and with that below Annotations
    for picture in pictures:
        path = os.path.splitext(os.path.abspath(picture.source or picture.path))[0]
        below = "/".join(os.path.relpath(path, os.path.abspath(root)).split(os.sep)[1:])
        for stem in {os.path.basename(path), below}:
            by_stem.setdefault(stem, []).append(picture)
    splits: Dict[str, List[Picture]] = {}
    for name, lines in lists.items():
        for line in dict.fromkeys(lines):
            # The name may have blanks, an extension, or a number after it.
            stems = [os.path.splitext(text)[0] for text in (line, line.split()[0])]
            found = next((by_stem[s] for s in (line, *stems) if s in by_stem), [])
            if len(found) != 1:
                what = f"is of {len(found)} images: add their folder" if found else "has no image"
                raise UserError(f"ImageSets/Main: the list of {name} has {line}, which {what}")
            splits.setdefault(name, []).append(found[0])
    listed = {id(picture) for found in splits.values() for picture in found}
    left_out = [picture for picture in pictures if id(picture) not in listed]
    others = sorted(os.path.splitext(os.path.basename(p.source or p.path))[0] for p in left_out)
    notes["objects of images in no list left out"] += sum(len(p.objects) for p in left_out)
    notes[f"images in no list of ImageSets/Main left out ({first(others, 3)})"] += len(others)
    return splits
