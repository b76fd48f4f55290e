"""The check of a COCO-format file: errors, dropped annotations, and missing keys.

Anything that makes a file ambiguous or unusable (broken JSON, duplicate ids, unknown categories,
missing image files) stops with a :class:`UserError`. A single annotation that cannot be used (of an
unknown image, a box of no area or outside its image, no usable mask where masks are trained) is
dropped, and counted in one warning. Keys that Detectron2's reader or pycocotools need and that many
files leave out (``iscrowd``, ``area``) are filled in.

Where something is dropped or filled in, a corrected copy of the file is written, which training and
evaluation read: the ground truth is the same for both. The user's file is never changed.
"""

import glob
import hashlib
import itertools
import json
import logging
import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Set, Tuple

import msgspec
import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import get_cache_dir

from ..errors import UserError, first, first_ids, is_utf8
from ..files import absolute, path_manager, whole_file
from ..memory import garbage_collection_paused
from .coco_records import MAX_AREA, AnnotationFile, CocoRecords, Columns, NotPlain, RecordTable
from .masks import is_finite, is_polygon, is_rle, polygon_area
from .opening import find_missing

# The largest 64-bit id that pycocotools takes, and the largest 32-bit size of an image.
_MAX_ID = 2**63 - 1
_MAX_SIZE = 2**31 - 1
# Pixels by which a box may reach beyond its image unnoticed: tools round differently.
_BOX_TOLERANCE = 1.0
# So many annotations are corrected together.
_CHUNK = 2_000
# Changes with the rules, so that no corrected copy of other rules is used.
_VERSION = 1
# The annotation file in each folder of an export of Roboflow.
ROBOFLOW_FILE = "_annotations.coco.json"
_WITHOUT_MASK = "without a mask that can be used"

Annotations = List[Dict[str, Any]]
Sizes = Dict[int, List[int]]  # image id: [height, width]


@dataclass
class CheckedCocoJson:
    """A checked file.

    Args:
        json_file (str): the file to read: the user's, or a corrected copy of it.
        categories (list[dict]): in the order of their ids.
        records (CocoRecords): of all images.
        messages (list[tuple[int, str]]): messages to log, with the logger's levels.
    """

    json_file: str
    categories: List[Dict[str, Any]]
    records: CocoRecords
    messages: List[Tuple[int, str]]

    @property
    def category_names(self) -> List[str]:
        return [category["name"] for category in self.categories]

    @property
    def category_ids(self) -> List[int]:
        return [category["id"] for category in self.categories]


def export_splits(folder: str) -> Dict[str, str]:
    """Return the folders of an unzipped Roboflow export by ``"train"``, ``"val"``, ``"test"``."""
    names = {"train": "train", "val": "valid", "test": "test"}
    parts = {split: os.path.join(folder, name) for split, name in names.items()}
    files = {s: absolute(os.path.join(part, ROBOFLOW_FILE)) for s, part in parts.items()}
    return {s: parts[s] for s, file in files.items() if path_manager(file).isfile(file)}


def check_coco_json(
    json_file: str, image_root: str, *, with_masks: bool, others: Iterable[str] = ()
) -> CheckedCocoJson:
    """Check a COCO-format file and its image folder; write a corrected copy if one is needed.

    Args:
        json_file (str): annotation file; anything that Detectron2's ``PathManager`` opens.
        image_root (str): image folder.
        with_masks (bool): whether an annotation without a usable mask is dropped. If not, it keeps
            its box and loses the mask.
        others (iterable of str): annotation files of the other splits: a category that only groups
            others is kept if one of them has an annotation of it. Those of Roboflow's exports,
            ``../*/_annotations.coco.json``, are found without.

    Returns:
        CheckedCocoJson

    Raises:
        UserError: if the files cannot be used; the message does not name the annotation file.
    """
    with garbage_collection_paused():
        others = sorted({*others, *_other_splits(json_file)} - {json_file})
        check = _check(json_file, image_root, with_masks, others)
        found = check.result()
        if check.changes_file:
            found.json_file, found.records = _read_copy(check, image_root, with_masks, others)
            found.messages.append(check.describe_copy(found.json_file))
    return found


def _other_splits(json_file: str) -> List[str]:
    """Return the files of an export of Roboflow, if this is one of them."""
    folder, name = os.path.split(json_file)
    if name != ROBOFLOW_FILE or "://" in json_file:
        return []
    return glob.glob(os.path.join(glob.escape(os.path.dirname(folder)), "*", name))


def _check(json_file: str, *args: Any) -> "_Check":
    try:
        return _Check(AnnotationFile(json_file), json_file, *args)
    except NotPlain:
        return _Check(AnnotationFile(json_file, plain=False), json_file, *args)


def _read_copy(check: "_Check", *args: Any) -> Tuple[str, CocoRecords]:
    path = check.copy_path()
    if os.path.isfile(path):
        try:
            copy = _check(path, *args)
            if not copy.changes_file:
                return path, copy.result().records
        except UserError:
            pass  # it was damaged since
    check.write_copy(path)
    return path, _check(path, *args).result().records


class _Check:
    """Checks each annotation of a file once.

    Nearly all are of the usual form, which :meth:`_find_good` detects in their columns. The others
    go through all rules, some thousands at a time.
    """

    def __init__(
        self,
        file: AnnotationFile,
        json_file: str,
        image_root: str,
        with_masks: bool,
        others: List[str],
    ):
        self._file = file
        self._json_file = json_file
        self._image_root = image_root
        self._with_masks = with_masks
        self._changed: Counter = Counter()
        images = file.records("images")
        categories = self._without_groups(file.records("categories"), others)
        check_categories(categories)
        check_images(images)
        repaired = check_image_files(images, image_root)
        if repaired:
            self._changed["'file_name' with slashes instead of backslashes"] = repaired
        self._categories = sorted(categories, key=lambda category: category["id"])
        self._sizes = {image["id"]: [image["height"], image["width"]] for image in images}
        self._num_keypoints = {c["id"]: _num_keypoints(c) for c in self._categories}
        self._columns = Columns(file, images, self._num_keypoints)
        self._dropped: Dict[str, List[int]] = {}
        self._beyond: List[int] = []
        self._read_annotations()

    @property
    def changes_file(self) -> bool:
        """Whether any annotation is dropped or changed."""
        return bool(self._changed) or any(self._dropped.values())

    def result(self) -> CheckedCocoJson:
        """Return the result, whose records are valid unless :attr:`changes_file`."""
        records = CocoRecords(RecordTable(self._columns), self._image_root)
        return CheckedCocoJson(self._json_file, self._categories, records, self._messages())

    def _without_groups(
        self, categories: List[Dict[str, Any]], others: List[str]
    ) -> List[Dict[str, Any]]:
        """Omit categories that only group others: without an annotation in any split.

        Roboflow's exports have a category 0, named like the project, which is the supercategory of
        all others. If the project is named like its class, both have one name.
        """
        self._groups: List[str] = []
        groups = [
            category["id"]
            for category in categories
            if type(category.get("id")) is int
            and any(
                other is not category and other.get("supercategory") == category.get("name")
                for other in categories
            )
        ]
        if not groups:
            return categories
        used = _used_categories(self._file)
        for path in others:
            used |= _used_in(path, categories)
        kept = [c for c in categories if c.get("id") not in groups or c["id"] in used]
        if not kept or len(kept) == len(categories):
            return categories
        self._groups = [str(c["name"]) for c in categories if c not in kept]
        self._changed["categories left out that only group others"] = len(self._groups)
        self._file.content["categories"] = kept
        return kept

    def _read_annotations(self) -> None:
        columns, new_ids = self._columns, self._new_ids()
        odd = np.flatnonzero(~self._find_good()).tolist()
        for start in range(0, len(odd), _CHUNK):
            self._take_odd(odd[start : start + _CHUNK], new_ids)
        if columns.has_duplicates():
            self._check_all()
        without_mask = self._dropped.get(_WITHOUT_MASK, [])
        self._num_kept = len(columns.ids) - sum(map(len, self._dropped.values()))
        if without_mask and not self._num_kept:
            raise UserError(
                f"no annotation has a mask that can be used ({first_ids(without_mask)}): write "
                "MODEL.MASK_ON False, or polygons [[x, y, x, y, x, y, ...], ...] in 'segmentation'"
            )

    def _find_good(self) -> np.ndarray:
        """Return which annotations every rule leaves as they are; it may miss some of them."""
        columns = self._columns
        x, y, w, h = columns.boxes.T
        height, width = columns.sizes[columns.places].T
        numbers = [_num_keypoints(category) or -1 for category in self._categories]
        num_keypoints = 3 * np.array(numbers)[columns.classes]
        return (
            columns.is_set
            & (columns.places >= 0)
            & (columns.classes >= 0)
            & ((x >= 0) & (w > 0) & (x < x + w) & (x + w <= width))
            & ((y >= 0) & (h > 0) & (y < y + h) & (y + h <= height))
            & ((columns.num_keypoints < 0) | (columns.num_keypoints == num_keypoints))
            & ~columns.has_rle
            & (columns.has_mask | (not self._with_masks))
        )

    def _take_odd(self, odd: List[int], new_ids: Iterator[int]) -> None:
        """Check and correct odd annotations, and add those that stay as they are.

        If anything is changed, the columns are not used: the copy is read instead.
        """
        columns = self._columns
        annotations = list(self._file.annotations(odd))
        try:
            check_annotations(annotations, self._num_keypoints)
        except UserError:
            self._check_all()
            raise
        columns.ids[odd] = [annotation["id"] for annotation in annotations]
        columns.is_set[odd] = False
        kept, dropped, changed = self._correct(annotations, new_ids)
        for reason, dropped_ids in dropped.items():
            self._dropped.setdefault(reason, []).extend(dropped_ids)
        self._changed.update(changed)
        self._beyond += boxes_beyond_image(kept, self._sizes)
        if not self.changes_file:
            for index, annotation in zip(odd, annotations):
                columns.set(index, annotation)

    def _check_all(self) -> None:
        """Raise the error of all annotations, with their number and their ids."""
        check_annotations(list(self._file.annotations()), self._num_keypoints)

    def _correct(
        self, annotations: Annotations, new_ids: Iterator[int]
    ) -> Tuple[Annotations, Dict[str, List[int]], Dict[str, int]]:
        """Return the annotations to keep, the other ids by reason, and counts of changes."""
        kept, dropped = drop_bad_boxes(annotations, self._sizes)
        kept, dropped[_WITHOUT_MASK], changed = correct_masks(kept, self._sizes, self._with_masks)
        changed.update(fill_in(kept, new_ids, self._num_keypoints))
        return kept, dropped, changed

    def _new_ids(self) -> Iterator[int]:
        """Count up from the largest id, which is looked for when a new id is needed."""
        ids = (annotation.get("id") for annotation in self._file.annotations())
        largest = max((i for i in ids if type(i) is int), default=0)
        yield from itertools.count(max(largest, 0) + 1)

    # ---- messages ----

    def _messages(self) -> List[Tuple[int, str]]:
        found = []
        if self._groups:
            text = f"left out categories that only group others: {first(self._groups)}"
            found.append((logging.INFO, text))
        if alike := alike_names(category["name"] for category in self._categories):
            text = f"categories differ only in upper and lower case or blanks: {first(alike)}"
            found.append((logging.WARNING, text))
        dropped = {reason: ids for reason, ids in self._dropped.items() if ids}
        if dropped:
            reasons = (f"{len(ids)} {why} ({first_ids(ids)})" for why, ids in dropped.items())
            count = f"{sum(map(len, dropped.values()))} of {len(self._file)}"
            text = f"dropped {count} annotations: {'; '.join(reasons)}"
            found.append((logging.WARNING, text))
        if self._beyond:
            is_most = len(self._beyond) > self._num_kept / 2
            text = (
                f"{len(self._beyond)} of {self._num_kept} boxes reach beyond their image "
                f"({first_ids(self._beyond)}); training clips them, evaluation does not"
            ) + ("; is 'bbox' [x, y, width, height]?" if is_most else "")
            found.append((logging.WARNING, text))
        return [(level, f"{self._json_file}: {text}") for level, text in found]

    def describe_copy(self, path: str) -> Tuple[int, str]:
        """Return the message about a corrected copy."""
        counts = ", ".join(f"{count} {what}" for what, count in self._changed.items())
        text = f"{self._json_file}: training and evaluation read {path}: {counts or 'the rest'}"
        return logging.INFO, text

    # ---- the corrected copy ----

    def copy_path(self) -> str:
        """The path of the corrected copy, which depends on the content of the file."""
        digest = hashlib.sha256(f"{_VERSION} {self._with_masks} {self._groups}".encode())
        digest.update(self._file.source.map())
        stem = os.path.splitext(os.path.basename(self._json_file))[0]
        name = f"{stem[:40]}-{digest.hexdigest()[:16]}.json"
        return os.path.join(get_cache_dir(), "rsb_d2", "coco_json", name)

    def write_copy(self, path: str) -> None:
        """Write the annotations that are kept, and all else of the file as it is."""
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, exist_ok=True)
            with whole_file(path) as f:
                f.write(json.dumps(self._file.content)[:-1].encode())
                f.write(b', "annotations": [')
                f.writelines(self._texts_of_copy())
                f.write(b"]}")
                f.flush()
                # Processes that write the same copy at the same time write the same version.
                os.utime(f.fileno(), ns=(self._file.source.version[1],) * 2)
        except (OSError, UserError) as e:
            error = e if isinstance(e, OSError) else e.__cause__
            if not isinstance(error, OSError):
                raise
            raise UserError(
                f"needs a corrected copy, which cannot be written to {folder} ({error.strerror}); "
                "make room there, or name another folder in the environment variable FVCORE_CACHE"
            ) from None

    def _texts_of_copy(self) -> Iterator[bytes]:
        annotations = self._file.annotations()
        new_ids, comma = self._new_ids(), b""
        while chunk := list(itertools.islice(annotations, _CHUNK)):
            for annotation in self._correct(chunk, new_ids)[0]:
                yield comma + json.dumps(annotation).encode()
                comma = b", "


class _Used(msgspec.Struct, gc=False):
    category_id: int


def _used_categories(file: AnnotationFile) -> Set[int]:
    """Return the category ids of all annotations in a file."""
    decoder = msgspec.json.Decoder(List[_Used])
    return {found.category_id for _, some in file.decode(decoder) for found in some}


def _used_in(path: str, categories: List[Dict[str, Any]]) -> Set[int]:
    """Return the category ids used in the file of another split; its own check reports errors."""

    def pairs(records: List[Dict[str, Any]]) -> List[Tuple]:
        return [(c.get("id"), c.get("name")) for c in records]

    for plain in (True, False):
        try:
            file = AnnotationFile(path, plain)
            is_split = pairs(file.records("categories")) == pairs(categories)
            return _used_categories(file) if is_split else set()
        except NotPlain:
            continue
        except (UserError, OSError):
            break
    return set()


def alike_names(names: Iterable[str]) -> List[str]:
    """Return the names that another one equals except for upper and lower case, and blanks."""
    keys = {name: " ".join(name.casefold().split()) for name in names}
    counts = Counter(keys.values())
    return [name for name, key in keys.items() if counts[key] > 1]


def _num_keypoints(category: Dict[str, Any]) -> int | None:
    """How many keypoints an object of a category has; None if the category does not name them."""
    names = category.get("keypoints")
    return len(names) if isinstance(names, list) and names else None


# ---- errors ----


def _check_ids(records: List[Dict[str, Any]], key: str) -> None:
    wrong = [i for i, record in enumerate(records) if not _is_id(record.get("id"))]
    if wrong:
        raise UserError(
            f"{len(wrong)} of '{key}' have no 'id' that is an integer of at most 64 bits; give "
            f"them one (positions in the list: {first(wrong)})"
        )
    _check_no_duplicates([record["id"] for record in records], f"ids in '{key}'")


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) <= _MAX_ID


def _check_no_duplicates(values: List[Any], what: str) -> None:
    if len(set(values)) == len(values):
        return
    duplicates = [value for value, count in Counter(values).items() if count > 1]
    raise UserError(
        f"{len(duplicates)} {what} are there more than once ({first(duplicates)}); "
        "each must be there once"
    )


def check_categories(categories: List[Dict[str, Any]]) -> None:
    if not categories:
        raise UserError("'categories' is empty; list the categories with their ids and names")
    _check_ids(categories, "categories")
    names = [category.get("name") for category in categories]
    nameless = [c["id"] for c, n in zip(categories, names) if not _is_text(n)]
    _stop_if(nameless, "categories have no 'name' that is a text")
    _check_no_duplicates(names, "category names")


def _is_text(value: Any) -> bool:
    # JSON's escapes can hold halves of characters, which can be neither written nor drawn.
    return isinstance(value, str) and bool(value) and is_utf8(value)


def check_images(images: List[Dict[str, Any]]) -> None:
    if not images:
        raise UserError("'images' is empty; list the images of the folder")
    _check_ids(images, "images")
    _stop_if(
        [i["id"] for i in images if not (_is_size(i.get("height")) and _is_size(i.get("width")))],
        "images have no 'height' and 'width' that are integers above 0",
    )
    _stop_if(
        [i["id"] for i in images if not (isinstance(i.get("file_name"), str) and i["file_name"])],
        "images have no 'file_name' that is a text",
    )
    wrong = [i for i in images if not _can_be_a_name(i["file_name"])]
    _stop_if(
        [i["id"] for i in wrong],
        f"images have a 'file_name' that no file can have, {first(i['file_name'] for i in wrong)}",
    )
    _stop_if(
        [i["id"] for i in images if _leaves_folder(i["file_name"])],
        "images have a 'file_name' that leads out of the image folder; "
        "write it relative to the folder, without '..'",
    )


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MAX_SIZE


def _can_be_a_name(file_name: str) -> bool:
    # Python reads bytes that are not UTF-8 as certain surrogates; other surrogates are a mistake.
    try:
        return b"\0" not in file_name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _leaves_folder(file_name: str) -> bool:
    if os.sep not in file_name:
        return file_name == os.pardir
    return os.path.isabs(file_name) or os.path.normpath(file_name).split(os.sep)[0] == os.pardir


def check_image_files(images: List[Dict[str, Any]], image_root: str) -> int:
    """Check that the files exist; replaces backslashes in names, and returns in how many."""
    file_names = [image["file_name"] for image in images]
    try:
        missing = find_missing(file_names, image_root)
        of_windows = {n: n.replace("\\", "/") for n in missing if "\\" in n}
        gone = set(find_missing(list(of_windows.values()), image_root)) if of_windows else ()
    except NotImplementedError:  # e.g. an https:// folder, which cannot be listed
        return 0
    of_windows = {n: m for n, m in of_windows.items() if m not in gone and not _leaves_folder(m)}
    for image in images:
        image["file_name"] = of_windows.get(image["file_name"], image["file_name"])
    missing = [name for name in missing if name not in of_windows]
    if not missing:
        return len(of_windows)
    hint = ""
    if len(missing) == len(file_names):
        hint = "; is it the right image folder?"
    raise UserError(
        f"{len(missing)} of {len(file_names)} image files are not in {image_root} "
        f"({first(missing)}){hint}"
    )


def check_annotations(annotations: List[Dict[str, Any]], category_ids: Iterable[int]) -> None:
    _check_ids(annotations, "annotations")
    _stop_if(
        [a["id"] for a in annotations if type(a.get("image_id")) is not int],
        "annotations have no 'image_id' that is an integer",
    )
    _stop_if(
        [a["id"] for a in annotations if type(a.get("category_id")) is not int],
        "annotations have no 'category_id' that is an integer",
    )
    unknown = [a for a in annotations if a["category_id"] not in category_ids]
    unknown_ids = sorted({a["category_id"] for a in unknown})
    _stop_if(
        [a["id"] for a in unknown],
        f"annotations are of a category that is not in 'categories' (ids {first(unknown_ids)})",
    )
    _stop_if(
        [a["id"] for a in annotations if not _is_box(a.get("bbox"))],
        "annotations have no 'bbox' that is [x, y, width, height], four numbers",
    )
    for flag in ("iscrowd", "ignore"):
        _stop_if(
            [a["id"] for a in annotations if a.get(flag, 0) not in (0, 1)],
            f"annotations have an '{flag}' that is not 0 or 1",
        )


def _is_box(bbox: Any) -> bool:
    # Not finite ones are numbers, too: such a box is dropped.
    if not (isinstance(bbox, list) and len(bbox) == 4):
        return False
    return all(type(x) is float or (type(x) is int and is_finite(x)) for x in bbox)


def _stop_if(ids: List[int], what: str) -> None:
    if ids:
        raise UserError(f"{len(ids)} {what} ({first_ids(ids)})")


# ---- dropped annotations and missing keys ----


def _boxes_and_sizes(annotations: Annotations, sizes: Sizes) -> List[np.ndarray]:
    """Return x, y, width, height of the boxes and width, height of their images, each (N,).

    The size of an unknown image is NaN.
    """
    unknown = [math.nan, math.nan]
    boxes = np.array([a["bbox"] for a in annotations], dtype=float).reshape(-1, 4)
    images = [sizes.get(a["image_id"], unknown) for a in annotations]
    images = np.array(images, dtype=float).reshape(-1, 2)
    return [*boxes.T, images[:, 1], images[:, 0]]


def drop_bad_boxes(
    annotations: Annotations, sizes: Sizes
) -> Tuple[Annotations, Dict[str, List[int]]]:
    """Return the annotations to keep, and the ids of the others by reason, all reasons named."""
    x, y, w, h, width, height = _boxes_and_sizes(annotations, sizes)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity minus infinity
        right, bottom = x + w, y + h
    reasons = {
        "of images that are not in 'images'": np.isnan(width),
        "with a box that is not finite": ~(np.isfinite(right) & np.isfinite(bottom)),
        "with a box of no area": (w <= 0) | (h <= 0),
        "with a box outside the image": (x >= width) | (y >= height) | (right <= 0) | (bottom <= 0),
    }
    dropped, keep = {}, np.ones(len(annotations), dtype=bool)
    for reason, bad in reasons.items():
        dropped[reason] = [annotations[i]["id"] for i in np.flatnonzero(bad & keep)]
        keep &= ~bad
    if keep.all():
        return annotations, dropped
    return [a for a, k in zip(annotations, keep) if k], dropped


def correct_masks(
    annotations: Annotations, sizes: Sizes, with_masks: bool
) -> Tuple[Annotations, List[int], Dict[str, int]]:
    """Take out the polygons and masks that cannot be used; with masks, the annotation too.

    Returns the annotations to keep, the ids of the others, and counts of the changes by kind.
    """
    kept, without_mask, changed = [], [], Counter()
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        usable = _usable_mask(segmentation, sizes[annotation["image_id"]])
        if usable is None and with_masks:
            without_mask.append(annotation["id"])
            continue
        kept.append(annotation)
        if usable is None and segmentation:
            del annotation["segmentation"]
            changed["masks that cannot be used taken out"] += 1
        elif usable is not None and len(usable) != len(segmentation):
            annotation["segmentation"] = usable
            changed["masks without their polygons that cannot be used"] += 1
    return kept, without_mask, changed


def _usable_mask(segmentation: Any, size: List[int]) -> Any:
    """Return the polygons, or the RLE, that can be used; None if there are none."""
    if isinstance(segmentation, dict):
        return segmentation if is_rle(segmentation, size) else None
    if isinstance(segmentation, list):
        return [polygon for polygon in segmentation if is_polygon(polygon, size)] or None
    return None


def fill_in(
    annotations: Annotations, new_ids: Iterator[int], num_keypoints: Dict[int, int | None]
) -> Dict[str, int]:
    """Fill in the keys that the readers need, in place. Returns how often, by kind.

    The new ids, above 0 and those of all annotations, are for annotations without one above 0.
    The numbers of keypoints are those of the categories, None where a category has any.
    """
    changed = Counter()
    for annotation in annotations:
        if annotation["id"] <= 0:  # COCOeval takes an object of id 0 for one that was not found
            annotation["id"] = next(new_ids)
            changed["ids made positive"] += 1
        if "iscrowd" not in annotation:
            annotation["iscrowd"] = 0
            changed["'iscrowd' set to 0"] += 1
        if annotation.pop("ignore", 0):  # which load_coco_json refuses and COCOeval overlooks
            annotation["iscrowd"] = 1
            changed["with 'ignore' made crowds"] += 1
        area = annotation.get("area")
        if not (is_finite(area) and 0 <= area <= MAX_AREA):
            annotation["area"] = min(_area(annotation), MAX_AREA)
            changed["'area' filled in"] += 1
        number = num_keypoints[annotation["category_id"]]
        if "keypoints" in annotation and not _are_keypoints(annotation["keypoints"], number):
            del annotation["keypoints"]
            changed["keypoints that cannot be used taken out"] += 1
    return changed


def _are_keypoints(keypoints: Any, number: int | None) -> bool:
    """Whether this is [x, y, visibility, ...], all finite, for none or so many keypoints."""
    if not isinstance(keypoints, list) or not all(map(is_finite, keypoints)):
        return False
    return len(keypoints) % 3 == 0 if number is None else len(keypoints) in (0, 3 * number)


def _area(annotation: Dict[str, Any]) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return annotation["bbox"][2] * annotation["bbox"][3]
    if isinstance(segmentation, list):
        return sum(map(polygon_area, segmentation))
    if isinstance(segmentation["counts"], list):
        return sum(segmentation["counts"][1::2])
    return int(mask_util.area(segmentation))


def boxes_beyond_image(annotations: Annotations, sizes: Sizes) -> List[int]:
    x, y, w, h, width, height = _boxes_and_sizes(annotations, sizes)
    t = _BOX_TOLERANCE
    beyond = (x < -t) | (y < -t) | (x + w > width + t) | (y + h > height + t)
    return [a["id"] for a, b in zip(annotations, beyond) if b]
