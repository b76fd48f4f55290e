"""From files of one format to a folder of another: read, checked, split, written whole."""

import json
import os
import shutil
from dataclasses import dataclass
from typing import Dict, List, Sequence

from ....errors import UserError, first, is_utf8, printable
from ....files import whole_folder
from .coco import merge_headers, read_coco, write_coco
from .compare import check_same
from .labelme import read_labelme
from .records import DataSet, Picture, Problems, common_folder, files_in
from .shapes import fit_objects
from .split import split_by_class
from .voc import read_voc
from .yolo.reading import find_data_yaml, read_yolo
from .yolo.writing import write_yolo

FORMATS = ("yolo", "voc", "labelme", "coco")


@dataclass
class Conversion:
    """What was written.

    Args:
        source (str): the format that was read, one of :data:`FORMATS`.
        data (DataSet): what is in the files, and in its notes what is not.
        root (str): folder that the images' names in COCO files start from.
        files (list[str]): a COCO file a split, or ``data.yaml``.
    """

    source: str
    data: DataSet
    root: str
    files: List[str]


def convert(
    inputs: Sequence[str],
    output: str,
    *,
    source: str = "",
    target: str = "coco",
    images: Sequence[str] = (),
    classes: Sequence[str] = (),
    split: float | None = None,
    seed: int = 0,
    clip: bool = False,
    labelled_only: bool = False,
    link: bool = False,
) -> Conversion:
    """Convert a data set.

    Args:
        inputs (sequence of str): a folder or file, or the COCO files of train, val and test.
        output (str): folder to write; must be empty, or not there.
        source (str): one of :data:`FORMATS`; ``""`` to tell by what is there.
        target (str): ``"coco"`` or ``"yolo"``.
        images (sequence of str): folder of the images; of COCO files, one for each or for all.
        classes (sequence of str): the names of the classes in the order wanted, of formats that
            have no list of them (VOC, LabelMe); else they are sorted.
        split (float or None): the share of the images to train on, between 0 and 1, of train and
            val together, by class; ``None`` for the splits that are there.
        seed (int): of the split.
        clip (bool): cut objects that reach beyond their image; an error otherwise.
        labelled_only (bool): leave out images without a label file, which else are background.
        link (bool): link images to YOLO's folders, and do not copy them.

    Returns:
        Conversion

    Raises:
        UserError: if anything about the data set is wrong. Nothing is written then.
    """
    _check_output(output)
    for path in [*inputs, *images]:
        if not os.path.exists(path):
            raise UserError(f"there is no file or folder {path}")
    source = source or tell_format(inputs[0])
    problems = Problems()
    data = _read(source, inputs, images, output, problems)
    if classes:
        _order_classes(data, classes, source, problems)
    problems.stop_if_any()
    fit_objects(data, problems, clip, keep=(source, target) == ("coco", "coco"))
    problems.stop_if_any()
    if labelled_only:
        _leave_out_unlabelled(data)
    if not any(picture.objects for picture in data.pictures()):
        raise UserError(f"{inputs[0]} has no objects in it, so there is nothing to convert")
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
    """The format of a file or folder, by what is in it.

    Raises:
        UserError: if it is none that is known, or may be one of two.
    """
    if os.path.isfile(path):
        ending = os.path.splitext(path)[1].lower()
        known = {".yaml": "yolo", ".yml": "yolo", ".xml": "voc", ".json": _format_of_json(path)}
        if known.get(ending):
            return known[ending]
        raise UserError(f"{path} is of no format that is known; name one with --from")
    try:
        find_data_yaml(path)
        return "yolo"
    except UserError as e:
        no_yaml = e
    found = []
    if files_in(path, (".xml",)):
        found.append("voc")
    if any(_format_of_json(file) == "labelme" for file in files_in(path, (".json",))[:100]):
        found.append("labelme")
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{path} has files of {' and '.join(found)}; name one with --from")
    if files_in(path, (".txt",)):
        raise no_yaml
    raise UserError(
        f"{path} is of no format that is known: it has no data.yaml (YOLO), XML files (Pascal VOC) "
        "or JSON files (LabelMe); of COCO, name the JSON file"
    )


def _format_of_json(path: str) -> str:
    if not path.lower().endswith(".json"):
        return ""
    try:
        with open(path, encoding="utf-8-sig") as f:
            content = json.load(f)
    except (OSError, ValueError, RecursionError):
        return "labelme"  # of which the reader says what is wrong with it
    if isinstance(content, dict) and "shapes" in content:
        return "labelme"
    return "coco" if isinstance(content, dict) and "annotations" in content else ""


def _read(
    source: str, inputs: Sequence[str], images: Sequence[str], output: str, problems: Problems
) -> DataSet:
    if source == "coco":
        if not images:
            raise UserError("name the folder of the images with --images")
        return read_coco(list(inputs), list(images), problems)
    if len(inputs) > 1 or len(images) > 1:
        raise UserError(f"of {source}, name one folder or file, and one folder with --images")
    if source == "yolo":
        if images:
            raise UserError("--images: of YOLO, data.yaml names the folders of the images")
        return read_yolo(inputs[0], problems)
    folder = images[0] if images else ""
    if source == "voc":
        return read_voc(inputs[0], folder, problems)
    return read_labelme(inputs[0], folder, os.path.abspath(output), problems)


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
    """JSON and YAML are Unicode: other readers stop at a name that is not, or read it otherwise."""
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
    # By their names in the data set: the same wherever it lies.
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
    """Read the files as training will, and compare."""
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
