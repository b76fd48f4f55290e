"""The output folder of a run: results of each image as they come, and the files made of them.

A process appends one JSON line per image to a file in ``progress/``, after the image's picture is
written. Incomplete lines, which a killed process leaves, do not count. At the end ``results.json``
and ``images.json`` are made from the lines. Processes that share the images, with ``--shard``, have
a folder each in ``shards/``, and :func:`merge_shards` makes the files.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode

from ...checkpoint import locate
from ...config import flat_items
from ...data.class_names import ClassNames
from ...errors import UserError, printable
from ...files import move_aside, sha256_of, whole_file

# Seconds after which lines survive a power failure; a killed process loses none of its lines.
_SYNC_PERIOD = 5.0
_MAX_ROWS = 20
_NAME_WIDTH = 44

# Config sections that a prediction depends on, without the device and the path of the weights.
_SECTIONS = ("MODEL", "INPUT")
_LEFT_OUT = ("MODEL.DEVICE", "MODEL.WEIGHTS")
_WEIGHTS, _IMAGES, CLASSES = "the weights", "the images", "the classes"


# The folder of the output for the shards of a run, and the names of their folders.
SHARDS = "shards"
_SHARD_NAME = re.compile(r"(\d+)-of-(\d+)")


class Shard(NamedTuple):
    """One of the equal parts of a run, each for one process.

    Args:
        number (int): of this part, from 1.
        count (int): number of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard of an option ``I/N``.

        Raises:
            UserError: for another form, or if ``I`` is not between 1 and ``N``.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(*map(int, match.groups())) if match else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise UserError(f"--shard is {text}; write I/N, with I between 1 and N, such as 1/8")
        return shard

    @property
    def name(self) -> str:
        return f"{self.number}-of-{self.count}"


ALL = Shard()

# ---- settings ----


def settings_of(cfg: CfgNode, dtype: str) -> Dict[str, Any]:
    """Return the settings of a model that decide whether a run can be resumed.

    Args:
        cfg (CfgNode): of :func:`rsb_d2.predictor.load_predict_config`.
        dtype (str): as of ``--dtype``.

    Returns:
        dict: of JSON's types; the settings that users change most often come first.

    Raises:
        UserError: if the weights do not exist.
    """
    path = locate(cfg.MODEL.WEIGHTS)
    flat = {}
    for section in _SECTIONS:
        flat |= sorted(flat_items(cfg[section], f"{section}."))
    return {
        _WEIGHTS: f"{os.path.getsize(path)} bytes, {sha256_of(path)[:16]}",
        "--threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        "--dtype": dtype,
        **{name: str(value) for name, value in flat.items() if name not in _LEFT_OUT},
        "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE,
    }


def images_setting(images: List[Tuple[str, str]]) -> Dict[str, str]:
    """Return the setting that identifies a list of images.

    Args:
        images (list[tuple[str, str]]): paths and names of their outputs.
    """
    text = "".join(f"{path}\0{name}\0" for path, name in images)
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return {_IMAGES: f"{len(images)} of them, {digest[:16]}"}


def _check_settings(before: Dict[str, Any], now: Dict[str, Any], folder: str) -> None:
    difference = _difference(before, now)
    if difference:
        raise UserError(
            f"--resume: the run in {folder} was started with {difference}; use the same, or "
            "leave --resume out to start again"
        )


def _difference(before: Dict[str, Any], now: Dict[str, Any]) -> str:
    for name in {**now, **before}:
        a, b = before.get(name), now.get(name)
        if a != b:
            if name in (_WEIGHTS, _IMAGES):
                return f"other {name.split()[1]} ({a}; these are {b})"
            return f"{name} {a}, not {b}"
    return ""


# ---- lines ----


def _lines_file(folder: str, number: int | str) -> str:
    return os.path.join(folder, f"results-{number}.jsonl")


class Journal:
    """The lines of one process, appended to its file.

    Args:
        folder (str): of the file; it must exist.

    Raises:
        UserError: if the file cannot be written.
    """

    def __init__(self, folder: str):
        self._name = _lines_file(folder, 0)
        self._synced = time.monotonic()
        try:
            self._file = open(self._name, "a+b")
            if self._file.tell():  # the file of an earlier run, which may end in half a line
                self._file.seek(-1, os.SEEK_END)
                if self._file.read(1) != b"\n":
                    self._file.write(b"\n")
        except OSError as e:
            raise self._error(e) from e

    def add(self, line: bytes) -> None:
        """Append a line, which ends with a newline."""
        try:
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > _SYNC_PERIOD:
                self._sync()
        except OSError as e:
            raise self._error(e) from e

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _error(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self._name}: {error.strerror or error}")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._sync()
            self._file.close()
        except OSError as e:
            raise self._error(e) from e


class Lines:
    """The lines of a run by image.

    Only the position of each line is kept in memory, not its contents.

    Args:
        folders (iterable of str): of the journals; may be missing.
        num_images (int): of the run.

    Attributes:
        skipped (list[tuple[str, str]]): path of each image that could not be used, and the reason.

    Raises:
        UserError: if one of the files cannot be read.
    """

    def __init__(self, folders: Iterable[str], num_images: int):
        self.skipped: List[Tuple[str, str]] = []
        self._files: List[Any] = []
        self._file_of = np.full(num_images, -1, dtype=np.int32)
        self._offsets = np.zeros(num_images, dtype=np.int64)
        names = [_lines_file(glob.escape(folder), "*") for folder in folders]
        for path in [path for name in names for path in sorted(glob.glob(name))]:
            try:
                self._files.append(open(path, "rb"))
                self._find(len(self._files) - 1)
            except OSError as e:
                raise UserError(f"cannot read {path}: {e.strerror or e}") from e

    def _find(self, number: int) -> None:
        offset = 0
        for line in self._files[number]:
            record = _parse(line)
            if record is not None and 0 <= record["index"] < len(self._file_of):
                self._file_of[record["index"]] = number
                self._offsets[record["index"]] = offset
                if "skipped" in record:
                    self.skipped.append((record["path"], record["skipped"]))
            offset += len(line)

    def done(self) -> bytes:
        """Return a byte for each image, 1 if it has a line."""
        return (self._file_of >= 0).astype(np.uint8).tobytes()

    def __getitem__(self, index: int) -> Dict[str, Any]:
        """Return the record of an image.

        Raises:
            KeyError: if it has no line.
            UserError: if the file cannot be read.
        """
        if self._file_of[index] < 0:
            raise KeyError(index)
        file = self._files[self._file_of[index]]
        try:
            file.seek(self._offsets[index])
            return json.loads(file.readline())
        except OSError as e:
            raise UserError(f"cannot read {file.name}: {e.strerror or e}") from e

    def close(self) -> None:
        for file in self._files:
            file.close()


def _parse(line: bytes) -> Dict[str, Any] | None:
    """Return the record of a line, or None if the line is incomplete."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("index"), int) else None


# ---- the summary ----


@dataclass
class Row:
    """Detections in one image.

    Args:
        path (str): as found from the command line.
        counts (dict[str, int]): number of objects by class name.
        best (dict[str, float]): highest score by class name.
    """

    path: str
    counts: Dict[str, int] = field(default_factory=dict)
    best: Dict[str, float] = field(default_factory=dict)

    def add(self, name: str, score: float) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        self.best[name] = max(score, self.best.get(name, 0.0))


@dataclass
class Summary:
    """Result of :func:`rsb_d2.addons.predict.pipeline.predict_files`.

    Args:
        num_images (int): number of images that could be read.
        num_skipped (int): number of the others.
        no_picture (list[list[str]]): path of each image whose picture cannot be drawn, and the
            reason.
        counts (dict[str, int]): number of objects by class name.
        rows (list[Row]): of the first images.
    """

    num_images: int = 0
    num_skipped: int = 0
    counts: Dict[str, int] = field(default_factory=dict)
    rows: List[Row] = field(default_factory=list)
    no_picture: List[List[str]] = field(default_factory=list)

    @classmethod
    def from_json(cls, content: Dict[str, Any]) -> "Summary":
        """Create a summary from the result of ``dataclasses.asdict``."""
        return cls(**{**content, "rows": [Row(**row) for row in content["rows"]]})


def format_table(summary: Summary) -> str:
    """Format a table of the first images and their objects, with a line of totals below."""
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _shorten(path: str) -> str:
    path = printable(path)
    return path if len(path) <= _NAME_WIDTH else "..." + path[3 - _NAME_WIDTH :]


# ---- the folder ----


class RunFolder:
    """The output of a run. ``run.json`` has its settings and, once it is finished, its summary.

    Args:
        folder (str): of all output.
        shard (Shard): which has ``run.json`` and its lines in ``shards/``.
    """

    def __init__(self, folder: str, shard: Shard = ALL):
        self.folder = folder
        self.pictures = os.path.join(folder, "pictures")
        self.results_file = os.path.join(folder, "results.json")
        self.images_file = os.path.join(folder, "images.json")
        self._is_shard = shard.count > 1
        self._work = os.path.join(folder, SHARDS, shard.name) if self._is_shard else folder
        self.progress = os.path.join(self._work, "progress")
        self._state_file = os.path.join(self._work, "run.json")

    def begin(
        self, settings: Dict[str, Any], images: Sequence[int], *, resume: bool, pictures: bool
    ) -> List[int] | Dict[str, Any]:
        """Create the folder, or look up which images of its run are done.

        Args:
            settings (dict): of this run.
            images (sequence of int): indices of the images of this process, ascending.
            resume (bool): continue the run in the folder.
            pictures (bool): whether pictures are written.

        Returns:
            list[int] or dict: the images that are not done; or the summary of a finished run.

        Raises:
            UserError: if the folder is not writable, or its run has other settings.
        """
        _make_folder(self._work)
        state = self._state() if resume else None
        if state is None:
            self._start(settings)
        if pictures:
            _make_folder(self.pictures)
        if state is None:
            return list(images)
        _check_settings(state["settings"], settings, self.folder)
        if state["summary"] and (self._is_shard or os.path.isfile(self.results_file)):
            print(f"the run in {self._work} is finished", file=sys.stderr)
            return state["summary"]
        _make_folder(self.progress)
        lines = Lines([self.progress], images[-1] + 1 if images else 0)
        done = lines.done()
        lines.close()
        for path, reason in lines.skipped:
            print(f"skipped {printable(path)}: {reason}", file=sys.stderr)
        pending = [index for index in images if not done[index]]
        print(f"{len(images) - len(pending)} of {len(images)} images are done", file=sys.stderr)
        return pending

    def _state(self) -> Dict[str, Any] | None:
        try:
            with open(self._state_file) as f:
                state = json.load(f)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise UserError(
                f"--resume: cannot read {self._state_file} ({e}); leave --resume out to start again"
            ) from None
        if not isinstance(state, dict) or not {"settings", "summary"} <= state.keys():
            raise UserError(
                f"--resume: {self._state_file} was written by another program; name another "
                "folder with --output"
            )
        return state

    def _start(self, settings: Dict[str, Any]) -> None:
        self._move_other_output(settings)
        if os.path.isdir(self.progress):
            print(
                f"the unfinished run in {self._work} starts again; --resume would continue it",
                file=sys.stderr,
            )
            shutil.rmtree(self.progress, ignore_errors=True)
        self._write_state(settings, None)
        _make_folder(self.progress)

    def _move_other_output(self, settings: Dict[str, Any]) -> None:
        """Move the output of a run with other images, weights or settings."""
        try:
            state = self._state()
        except UserError:
            state = None
        if state is None or state["settings"] == settings:
            return
        # The pictures of a shard are in a folder with those of the others.
        shared = () if self._is_shard else (self.pictures, self.results_file, self.images_file)
        outputs = (*shared, self.progress, self._state_file)
        paths = [path for path in outputs if os.path.lexists(path)]
        moved = move_aside(self._work, map(os.path.basename, paths))
        print(f"the output of another run in {self._work} is now in {moved}", file=sys.stderr)

    def _write_state(self, settings: Dict[str, Any], summary: Dict[str, Any] | None) -> None:
        with whole_file(self._state_file) as f:
            f.write(json.dumps({"settings": settings, "summary": summary}, indent=1).encode())

    def finish(
        self, settings: Dict[str, Any], images: Sequence[int], classes: ClassNames
    ) -> Summary:
        """Write the COCO files from the lines; those of a shard wait for the others.

        Args:
            settings (dict): as for :meth:`begin`.
            images (sequence of int): as for :meth:`begin`.
            classes (ClassNames): of the model.

        Raises:
            UserError: if they cannot be written.
        """
        lines = Lines([self.progress], images[-1] + 1 if images else 0)
        if self._is_shard:
            summary = _summarize(lines, images, classes)
        else:
            summary = self.write_results(lines, images, classes)
        lines.close()
        self._write_state(settings, dataclasses.asdict(summary))
        if not self._is_shard:
            shutil.rmtree(self.progress, ignore_errors=True)
        return summary

    def write_results(self, lines: Lines, images: Sequence[int], classes: ClassNames) -> Summary:
        """Write ``results.json`` and ``images.json``.

        Args:
            lines (Lines): of all images.
            images (sequence of int): indices of the images.
            classes (ClassNames): of the model.

        Raises:
            UserError: if they cannot be written.
        """
        categories = [{"id": i, "name": name} for i, name in zip(classes.ids, classes.names)]
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(whole_file(path))
                for path in (self.results_file, self.images_file)
            ]
            files[0].write(b"[")
            files[1].write(b'{"info": {}, "images": [')
            summary = _summarize(lines, images, classes, *files)
            files[0].write(b"]")
            end = f'], "annotations": [], "categories": {json.dumps(categories)}}}'
            files[1].write(end.encode())
        return summary


def _summarize(
    lines: Lines,
    images: Sequence[int],
    classes: ClassNames,
    results_file: IO[bytes] | None = None,
    images_file: IO[bytes] | None = None,
) -> Summary:
    """Sum up the lines of some images, and append their entries to the lists in two files."""
    summary, names = Summary(), dict(zip(classes.ids, classes.names))
    counts: Counter = Counter()
    for index in images:
        record = lines[index]
        if "skipped" in record:
            summary.num_skipped += 1
            continue
        row = Row(record["image"]["file_name"])
        if images_file is not None:
            append_json(images_file, record["image"], is_first=not summary.num_images)
        for result in record["results"]:
            if results_file is not None:
                append_json(results_file, result, is_first=not counts)
            name = names[result["category_id"]]
            counts[name] += 1
            row.add(name, result["score"])
        summary.num_images += 1
        if "no_picture" in record:
            summary.no_picture.append([row.path, record["no_picture"]])
        if len(summary.rows) < _MAX_ROWS:
            summary.rows.append(row)
    summary.counts = dict(counts)
    return summary


def merge_shards(output_dir: str) -> Summary:
    """Write ``results.json`` and ``images.json`` from the shards of a run, and remove these.

    Args:
        output_dir (str): the output folder of all shards.

    Returns:
        Summary: of all images.

    Raises:
        UserError: if a shard is missing, not finished or of other images or settings, or if the
            files cannot be written.
    """
    work = os.path.join(output_dir, SHARDS)
    names = os.listdir(work) if os.path.isdir(work) else []
    shards = [
        Shard(*map(int, match.groups())) for match in map(_SHARD_NAME.fullmatch, names) if match
    ]
    counts = sorted({shard.count for shard in shards})
    if not counts:
        raise UserError(f"{output_dir} has no shards; name the --output of `predict --shard I/N`")
    if len(counts) > 1:
        raise UserError(
            f"{work} has shards of runs with {' and '.join(map(str, counts))} shards; remove the "
            "folders of one of them"
        )
    states = {}
    for number in range(1, counts[0] + 1):
        folder = RunFolder(output_dir, Shard(number, counts[0]))
        state = folder._state()
        if not (state and state["summary"]):
            raise UserError(
                f"{output_dir} lacks the results of shard {number}/{counts[0]}; run it with "
                f"--shard {number}/{counts[0]} --resume"
            )
        states[folder.progress] = state
    settings = next(iter(states.values()))["settings"]
    for number, state in enumerate(states.values(), 1):
        difference = _difference(settings, state["settings"])
        if difference:
            raise UserError(
                f"{output_dir}: shard 1/{counts[0]} was run with {difference} of shard "
                f"{number}/{counts[0]}; run both with the same"
            )
    ids = settings[CLASSES]
    classes = ClassNames(tuple(ids.values()), tuple(map(int, ids)))
    num_images = sum(
        s["summary"]["num_images"] + s["summary"]["num_skipped"] for s in states.values()
    )
    lines = Lines(states, num_images)
    complete = RunFolder(output_dir)
    summary = complete.write_results(lines, range(num_images), classes)
    lines.close()
    complete._write_state(settings, dataclasses.asdict(summary))
    shutil.rmtree(work, ignore_errors=True)
    return summary


def append_json(file: IO[bytes], entry: Dict[str, Any], is_first: bool) -> None:
    """Write an entry of a JSON list, so that the list never is in memory."""
    file.write((b"" if is_first else b", ") + json.dumps(entry).encode())


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output: cannot make the folder {folder}: {e.strerror}") from e
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output: cannot write to the folder {folder}")
