"""Conversion of data sets: YOLO, Pascal VOC, LabelMe, VIA and COCO to COCO, and all to YOLO.

:func:`convert` reads the files of one format into a :class:`~.records.DataSet`, checks and splits
it, writes the files of another format, and compares them with the data set when read again.

hotcoco 1.3 converts VOC and YOLO as well: 364 VOC files in 0.14 s, where this package, which opens
every image, takes 6.4 s. It is not used here because it silently accepts files that this package
refuses or counts; the module docstrings of :mod:`.voc` and :mod:`.yolo` list them. ``COCO.split``
draws images at random, so that a rare class may be missing from a split.
"""

import json
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import Dict, List, Sequence, Set, Tuple

import numpy as np

from ....data.coco_check import ROBOFLOW_FILE, alike_names, export_splits
from ....errors import UserError, count, first, is_utf8, printable
from ....files import whole_folder
from .coco import merge_headers, read_coco, write_coco
from .coco_repair import images_of, splits_of
from .labelme import read_labelme
from .records import (
    IMAGES_LEFT_OUT,
    OBJECTS_LEFT_OUT,
    DataSet,
    Object,
    Picture,
    Problems,
    common_folder,
    files_in,
)
from .shapes import fit_objects
from .via import is_via, is_via_csv, read_via
from .voc import read_voc
from .yolo import find_data_yaml, is_label_file, read_yolo, write_yolo

_TOLERANCE = 0.01  # in pixels, of the written files; files have more digits
_BACKGROUND = object()

FORMATS = ("yolo", "voc", "labelme", "via", "coco")


@dataclass
class Conversion:
    """The result of a conversion.

    Args:
        source (str): the format that was read, one of :data:`FORMATS`.
        data (DataSet): the contents of the files; its notes count everything left out or changed.
        root (str): folder that image names in the COCO files are relative to.
        files (list[str]): a COCO file per split, or ``data.yaml``.
    """

    source: str
    data: DataSet
    root: str
    files: List[str]

    def summary(self) -> str:
        """Return one line: images and objects that were read, written, and left out by reason."""
        pictures = {id(picture): picture for picture in self.data.pictures()}.values()
        notes = self.data.notes
        objects = sum(len(picture.objects) for picture in pictures) - notes["crowds left out"]
        return (
            f"{count(self.data.images_read, 'image')} with "
            f"{count(self.data.objects_read, 'object')} read, "
            f"{count(len(pictures), 'image')} with {count(objects, 'object')} written. Left out: "
            f"{_left_out(notes, OBJECTS_LEFT_OUT + IMAGES_LEFT_OUT) or 'nothing'}"
        )


def _left_out(notes: Dict[str, int], reasons: Tuple[str, ...]) -> str:
    found = []
    for what, number in notes.items():
        if number and what.startswith(reasons):
            name, _, rest = what.replace(" left out", "").partition(" ")
            if number == 1 and not rest.startswith("and "):
                name = "box" if name == "boxes" else name.removesuffix("s")
            found.append(f"{number} {name} {rest}".strip())
    return "; ".join(found)


def convert(
    inputs: Sequence[str],
    output: str,
    *,
    source: str = "",
    target: str = "coco",
    images: Sequence[str] = (),
    classes: Sequence[str] = (),
    attribute: str = "",
    split: float | None = None,
    seed: int = 0,
    clip: bool = False,
    labelled_only: bool = False,
    link: bool = False,
) -> Conversion:
    """Convert a data set.

    Args:
        inputs (sequence of str): a folder or file, or the COCO files of train, val and test, or the
            folder of an export of Roboflow.
        output (str): folder to write; must be empty or not exist.
        source (str): one of :data:`FORMATS`; ``""`` to detect it from the files.
        target (str): ``"coco"`` or ``"yolo"``.
        images (sequence of str): folder of the images; for COCO files, one for all or one each.
        classes (sequence of str): names of the classes in the desired order, for formats without
            a list of classes (VOC, LabelMe, VIA); sorted by default.
        attribute (str): for VIA, the attribute of regions that is their class; ``""`` to choose it.
        split (float or None): fraction of the images of train and val to train on, between 0 and
            1, stratified by class; ``None`` keeps the existing splits.
        seed (int): seed of the split.
        clip (bool): clip objects that reach beyond their image, which is an error otherwise.
        labelled_only (bool): leave out images without a label file, which are background otherwise.
        link (bool): link images into YOLO's folders instead of copying them.

    Returns:
        Conversion

    Raises:
        UserError: if anything in the data set is wrong; nothing is written then.
    """
    _check_output(output)
    for path in [*inputs, *images]:
        if not os.path.exists(path):
            raise UserError(f"there is no file or folder {path}")
    source = source or tell_format(inputs[0])
    problems = Problems()
    if attribute and source != "via":
        raise UserError("--attribute: only regions of VIA have attributes")
    if source == "via":
        _check_one(source, inputs, images)
        data = read_via(inputs[0], images[0] if images else "", attribute, classes, problems)
    else:
        data = _read(source, inputs, images, output, problems)
    if classes:
        _order_classes(data, classes, source, problems)
    alike = alike_names(data.names)
    differ = "classes that differ only in upper and lower case or blanks"
    data.notes[f"{differ} ({first(alike)})"] += len(alike)
    problems.stop_if_any()
    fit_objects(data, problems, clip, keep=(source, target) == ("coco", "coco"))
    problems.stop_if_any()
    if labelled_only:
        _leave_out_unlabelled(data)
    if not any(picture.objects for picture in data.pictures()):
        reason = f"{inputs[0]} has {count(data.objects_read, 'object')}"
        if data.objects_read:
            reason += f", all of them left out: {_left_out(data.notes, OBJECTS_LEFT_OUT)}"
        raise UserError(f"{reason}; there is nothing to convert")
    root = data.root or common_folder(data.pictures())
    _check_names(data, root, problems)
    problems.stop_if_any()
    if split is not None:
        _split(data, root, split, seed)
    with whole_folder(output, "--output: ") as folder:
        if target == "yolo":
            written = write_yolo(data, folder, link)
            try:
                check_same(written, read_yolo(folder, problems))
                problems.stop_if_any()
            except UserError as e:
                raise UserError(str(e).replace(folder, output)) from None
        else:
            write_coco(data, root, folder)
            _write_embedded(data, output, folder)
    names = ["data.yaml"] if target == "yolo" else [f"{name}.json" for name in data.splits]
    files = [os.path.join(output, name) for name in names]
    if target == "coco":
        _check_coco(data, files, root, output)
    return Conversion(source, data, root, files)


def tell_format(path: str) -> str:
    """Return the format of a file or folder, detected from its contents.

    Raises:
        UserError: if the format is unknown or ambiguous.
    """
    if os.path.isfile(path):
        ending = os.path.splitext(path)[1].lower()
        known = {".yaml": "yolo", ".yml": "yolo", ".data": "yolo", ".xml": "voc"}
        found = known.get(ending) or _format_of(path)
        if found:
            return found
        raise UserError(
            f"{path} is not a file of COCO, LabelMe, VIA 1 or 2, Pascal VOC or YOLO; export the "
            "data in COCO's format, as CVAT, Label Studio and Datumaro can"
        )
    if export_splits(path):
        return "coco"
    found = []
    try:
        file = find_data_yaml(path)
        if file.endswith((".yaml", ".yml")) and os.path.dirname(file) == os.path.normpath(path):
            return "yolo"
        found.append("yolo")
    except UserError as e:
        no_yaml = e
    if files_in(path, (".xml",)):
        found.append("voc")
    others = set()
    for file in files_in(path, (".json", ".csv")):
        others.add(_format_of(file))
        if others & {"labelme", "via"}:
            break
    # A file of COCO may be made of the others.
    found += [f for f in ("labelme", "via") if f in others] or ["coco"] * (
        "coco" in others and not found
    )
    if len(found) > 1 and not any(map(is_label_file, files_in(path, (".txt",)))):
        found = [name for name in found if name != "yolo"]  # it has only names of classes
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{path} has files of {' and '.join(found)}; name one with --from")
    if files_in(path, (".txt", ".yaml", ".yml")):
        raise no_yaml
    raise UserError(
        f"{path} has an unknown format: it has no data.yaml (YOLO), XML files (Pascal VOC) "
        "or files of LabelMe, VIA or COCO"
    )


def _format_of(path: str) -> str:
    """Return the format of a JSON or CSV file, or ``""``."""
    if not path.lower().endswith(".json"):
        return "via" if is_via_csv(path) else ""
    try:
        with open(path, encoding="utf-8-sig") as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError):
        return "labelme"  # whose reader reports the error
    if isinstance(content, dict) and "shapes" in content:
        return "labelme"
    if is_via(content):
        return "via"
    return "coco" if isinstance(content, dict) and "annotations" in content else ""


def _read(
    source: str, inputs: Sequence[str], images: Sequence[str], output: str, problems: Problems
) -> DataSet:
    if source == "coco":
        export = export_splits(inputs[0])
        if export and len(inputs) == 1 and not images:
            files = [os.path.join(folder, ROBOFLOW_FILE) for folder in export.values()]
            return read_coco(files, list(export.values()), problems, tuple(export))
        if len(inputs) == 1 and os.path.isdir(inputs[0]):
            files = splits_of(_coco_files(inputs[0]), inputs[0])
        else:
            files = dict(zip(("train", "val", "test", *inputs), inputs))
        folders = list(images) or [images_of(path) for path in files.values()]
        return read_coco(list(files.values()), folders, problems, tuple(files))
    _check_one(source, inputs, images)
    if source == "yolo":
        if images:
            raise UserError("--images: of YOLO, data.yaml names the folders of the images")
        return read_yolo(inputs[0], problems)
    folder = images[0] if images else ""
    if source == "voc":
        return read_voc(inputs[0], folder, problems)
    return read_labelme(inputs[0], folder, os.path.abspath(output), problems)


def _coco_files(folder: str) -> List[str]:
    files = [file for file in files_in(folder, (".json",)) if _format_of(file) == "coco"]
    if not files:
        raise UserError(f"{folder} has no JSON files of COCO")
    return files


def _check_one(source: str, inputs: Sequence[str], images: Sequence[str]) -> None:
    if len(inputs) > 1 or len(images) > 1:
        raise UserError(f"of {source}, name one folder or file, and one folder with --images")


def _order_classes(data: DataSet, classes: Sequence[str], source: str, problems: Problems) -> None:
    if source in ("yolo", "coco"):
        raise UserError(f"--classes: a data set of {source} names its classes itself")
    if len(set(classes)) < len(classes):
        raise UserError(f"--classes names a class more than once: {first(classes)}")
    for picture in data.pictures():
        for thing in picture.objects:
            if thing.category not in classes:
                problems.add(thing.where, f"is of the class {thing.category}, not in --classes")
    data.names = list(classes)


def _leave_out_unlabelled(data: DataSet) -> None:
    for split, pictures in list(data.splits.items()):
        data.splits[split] = [picture for picture in pictures if picture.source]
        left_out = len(pictures) - len(data.splits[split])
        data.notes["images without a label file left out"] += left_out
        if not data.splits[split]:
            del data.splits[split]


def _check_names(data: DataSet, root: str, problems: Problems) -> None:
    """Report names that are not UTF-8, which other readers of JSON and YAML misread or refuse."""
    for picture in data.pictures():
        if not is_utf8(os.path.relpath(picture.path, root)):
            problems.add(picture.path, "has a name that is not UTF-8; rename it")
    for name in data.names:
        if not is_utf8(name):
            problems.add(f"the class {name}", "has a name that is not UTF-8; rename it")


def _split(data: DataSet, root: str, share: float, seed: int) -> None:
    pool: Dict[str, Picture] = {}
    for picture in (p for name in ("train", "val") for p in data.splits.get(name, [])):
        other = pool.setdefault(picture.path, picture)
        if other.source != picture.source:  # of two COCO files
            raise UserError(
                f"--split: the image {printable(picture.path)} is in {other.source} and in "
                f"{picture.source}; leave it in one of them"
            )
    # Sorted by names in the data set, so that a copy elsewhere is split in the same way.
    pictures = sorted(pool.values(), key=lambda p: os.path.relpath(p.path, root))
    labels = [{o.category for o in p.objects if not o.crowd} for p in pictures]
    train, val = split_by_class(labels, share, seed)
    test = {"test": data.splits["test"]} if "test" in data.splits else {}
    data.splits = {
        "train": [pictures[i] for i in train],
        "val": [pictures[i] for i in val],
        **test,
    }
    headers = [data.headers[name] for name in ("train", "val") if name in data.headers]
    if headers:
        data.headers |= dict.fromkeys(("train", "val"), merge_headers(headers))


# ---- splitting ----


def split_by_class(
    labels: Sequence[Set[str]], share: float, seed: int
) -> Tuple[List[int], List[int]]:
    """Split images in two, stratified by class.

    Args:
        labels (sequence of set[str]): the classes of each image; images without objects count as a
            class of their own.
        share (float): fraction of the images in the first part, between 0 and 1.
        seed (int): the same images and seed give the same parts.

    Returns:
        list[int], list[int]: ascending indices of the images of the two parts. The first part has
        ``share`` of the images, rounded, and neither is empty. A class of two images or more is in
        both parts, as far as their sizes allow.

    Raises:
        UserError: if ``share`` is not between 0 and 1, or if there are fewer than two images.

    Source: Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, ECML PKDD
    2011, algorithm 1: the rarest class first, each image to the part that lacks it most.
    """
    if not 0 < share < 1:
        raise UserError(f"--split is {share:g}; write the fraction of training images, such as 0.8")
    if len(labels) < 2:
        raise UserError(f"--split: there are {len(labels)} images, but a split needs two or more")
    kinds = [set(names) or {_BACKGROUND} for names in labels]
    rng = random.Random(seed)
    order = list(range(len(kinds)))
    rng.shuffle(order)
    first = min(max(round(len(kinds) * share), 1), len(kinds) - 1)
    room = [first, len(kinds) - first]
    counts = Counter(kind for names in kinds for kind in names)
    wanted = [_wanted(counts, share), _wanted(counts, 1 - share)]
    members: Dict[object, List[int]] = {kind: [] for kind in counts}
    for index in order:
        for kind in kinds[index]:
            members[kind].append(index)

    parts: Tuple[List[int], List[int]] = ([], [])
    done: Set[int] = set()
    rank = {kind: i for i, kind in enumerate(sorted(counts, key=str))}
    while counts:
        rarest = min(counts, key=lambda kind: (counts[kind], rank[kind]))
        for index in members[rarest]:
            if index in done:
                continue
            part = max((0, 1), key=lambda p: (room[p] > 0, wanted[p][rarest], room[p]))
            parts[part].append(index)
            done.add(index)
            room[part] -= 1
            for kind in kinds[index]:
                wanted[part][kind] -= 1
                counts[kind] -= 1
        counts = Counter({kind: count for kind, count in counts.items() if count > 0})
    return sorted(parts[0]), sorted(parts[1])


def _wanted(counts: Counter, share: float) -> Dict[object, float]:
    """Return the number of images that a part should get per class: at least one of two or more."""
    return {
        kind: min(max(count * share, 1), count - 1) if count > 1 else share
        for kind, count in counts.items()
    }


# ---- writing ----


def _check_output(output: str) -> None:
    if os.path.isdir(output) and not os.listdir(output):
        return
    if os.path.lexists(output):
        raise UserError(f"--output: {output} is there already; name another folder, or empty it")


def _write_embedded(data: DataSet, output: str, folder: str) -> None:
    for picture in data.pictures():
        if picture.embedded:
            path = os.path.join(folder, os.path.relpath(picture.path, os.path.abspath(output)))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as f:
                f.write(picture.embedded)


def _check_coco(data: DataSet, files: List[str], root: str, output: str) -> None:
    """Read the files as training does, and compare them with the data set."""
    try:
        problems = Problems()
        found = DataSet(data.names, {})
        for split, file in zip(data.splits, files):
            read = read_coco([file], [root], problems)
            found.names, found.splits[split] = read.names, read.splits["train"]
        problems.stop_if_any()
        check_same(data, found)
    except BaseException:
        shutil.rmtree(output)
        raise


def check_same(written: DataSet, found: DataSet) -> None:
    """Compare a data set with the one that was read from its files.

    Raises:
        UserError: with the first difference.
    """
    start = "the written files do not read back correctly, so they were removed:"
    if (found.names, found.splits.keys()) != (written.names, written.splits.keys()):
        raise UserError(
            f"{start} classes {first(found.names)} and splits {first(found.splits)}, not "
            f"{first(written.names)} and {first(written.splits)}"
        )
    for split, pictures in written.splits.items():
        others = {os.path.realpath(picture.path): picture for picture in found.splits[split]}
        expected = {os.path.realpath(picture.path): picture for picture in pictures}
        if others.keys() != expected.keys():
            names = first(sorted(expected.keys() ^ others.keys()))
            raise UserError(f"{start} the images of {split} differ in {names}")
        for path, picture in expected.items():
            a, b = picture.objects, others[path].objects
            is_same = len(a) == len(b) and all(map(_is_same, a, b))
            if not is_same or picture.size != others[path].size:
                raise UserError(f"{start} {first([path])} has other objects, or another size")


def _is_same(a: Object, b: Object) -> bool:
    return (
        (a.category, a.crowd, a.rle) == (b.category, b.crowd, b.rle)
        and _is_close(a.box, b.box)
        and len(a.polygons) == len(b.polygons)
        and all(map(_is_close, a.polygons, b.polygons))
    )


def _is_close(a: Sequence[float], b: Sequence[float]) -> bool:
    return len(a) == len(b) and bool(np.allclose(a, b, rtol=1e-6, atol=_TOLERANCE))
