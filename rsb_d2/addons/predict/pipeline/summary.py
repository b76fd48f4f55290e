"""The two COCO files and the table, made from the lines of all images, one after the other."""

import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any, Dict, List

from ....data.class_names import ClassNames
from ....errors import printable
from ....files import whole_file
from .journal import Lines

_MAX_ROWS = 20
_NAME_WIDTH = 44


@dataclass
class Row:
    """What was found in one image.

    Args:
        path (str): as found from the command line.
        counts (dict[str, int]): of the names of the classes.
        best (dict[str, float]): of each of them, the highest score.
    """

    path: str
    counts: Dict[str, int] = field(default_factory=dict)
    best: Dict[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """What :func:`rsb_d2.addons.predict.pipeline.predict_files` did.

    Args:
        num_images (int): that could be read.
        num_skipped (int): the others.
        no_picture (list[list[str]]): the path of each image whose picture cannot be drawn, and why.
        counts (dict[str, int]): objects by the names of their classes.
        rows (list[Row]): of the first images.
    """

    num_images: int = 0
    num_skipped: int = 0
    counts: Dict[str, int] = field(default_factory=dict)
    rows: List[Row] = field(default_factory=list)
    no_picture: List[List[str]] = field(default_factory=list)

    @classmethod
    def of_json(cls, content: Dict[str, Any]) -> "Summary":
        """The summary of which ``content`` is what ``dataclasses.asdict`` makes."""
        return cls(**{**content, "rows": [Row(**row) for row in content["rows"]]})


class _List:
    """A JSON list of a file, written entry by entry, as ``json.dump`` writes it."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._is_empty = True

    def add(self, entry: Dict[str, Any]) -> None:
        self._file.write((b"" if self._is_empty else b", ") + json.dumps(entry).encode())
        self._is_empty = False


def write_results(
    lines: Lines, num_images: int, classes: ClassNames, results_file: str, images_file: str
) -> Summary:
    """Write both files, in the order of the images, each whole or not at all.

    Args:
        lines (Lines): with a line of each image.
        num_images (int): how many there are.
        classes (ClassNames): of the model.
        results_file, images_file (str): paths.

    Returns:
        Summary

    Raises:
        UserError: if one of them cannot be written.
    """
    summary, names = Summary(), dict(zip(classes.ids, classes.names))
    categories = [{"id": i, "name": name} for i, name in names.items()]
    counts: Counter = Counter()
    with contextlib.ExitStack() as stack:
        results, images = (stack.enter_context(whole_file(p)) for p in (results_file, images_file))
        results.write(b"[")
        images.write(b'{"info": {}, "images": [')
        result_list, image_list = _List(results), _List(images)
        for index in range(num_images):
            record = lines[index]
            if "skipped" in record:
                summary.num_skipped += 1
                continue
            summary.num_images += 1
            image_list.add(record["image"])
            if "no_picture" in record:
                summary.no_picture.append([record["image"]["file_name"], record["no_picture"]])
            for result in record["results"]:
                result_list.add(result)
            counts.update(names[result["category_id"]] for result in record["results"])
            if len(summary.rows) < _MAX_ROWS:
                summary.rows.append(_row(record, names))
        results.write(b"]")
        images.write(f'], "annotations": [], "categories": {json.dumps(categories)}}}'.encode())
    summary.counts = dict(counts)
    return summary


def _row(record: Dict[str, Any], names: Dict[int, str]) -> Row:
    row = Row(record["image"]["file_name"])
    for result in record["results"]:
        name, score = names[result["category_id"]], result["score"]
        row.counts[name] = row.counts.get(name, 0) + 1
        row.best[name] = max(score, row.best.get(name, 0.0))
    return row


def format_table(summary: Summary) -> str:
    """A table of the images and what is in them, with a line of totals below.

    Args:
        summary (Summary): of :func:`write_results`.

    Returns:
        str: one line an image, and of many images the first ones only.
    """
    width = max([len("image"), *(len(_shorten(row.path)) for row in summary.rows)])
    lines = [f"{'image':{width}}  objects  classes, each with its number and highest score"]
    for row in summary.rows:
        classes = ", ".join(
            f"{name} {number} ({row.best[name]:.2f})"
            for name, number in Counter(row.counts).most_common()
        )
        number = sum(row.counts.values())
        lines.append(f"{_shorten(row.path):{width}}  {number:7}  {classes}".rstrip())
    if summary.num_images > len(summary.rows):
        lines.append(f"... and {_count(summary.num_images - len(summary.rows), 'image')} more")
    totals = Counter(summary.counts)
    line = f"{_count(summary.num_images, 'image')}, {_count(totals.total(), 'object')}"
    if totals:
        line += ": " + ", ".join(f"{number} {name}" for name, number in totals.most_common())
    if summary.num_skipped:
        line += f"; {summary.num_skipped} skipped"
    if summary.no_picture:
        line += f"; {len(summary.no_picture)} without a picture"
    return "\n".join([*lines, line])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _shorten(path: str) -> str:
    path = printable(path)
    return path if len(path) <= _NAME_WIDTH else "..." + path[3 - _NAME_WIDTH :]
