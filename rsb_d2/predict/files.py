"""Images, folders and globs in; annotated pictures, a COCO results file and a table out."""

import glob
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Tuple
from urllib.parse import urlparse

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image
from tqdm import tqdm

from ..data.images import BadImageError, read_image
from ..data.storage.remote import is_remote
from ..data.storage.tar import open_tar, split_tar_path
from ..errors import UserError
from ..visualization import class_colors, readable_scale
from .predictor import Predictor
from .video_reader import is_video

_MAX_ROWS = 20
_NAME_WIDTH = 44


@dataclass
class Prediction:
    """What was found in one image.

    Args:
        path (str): as found from the command line.
        picture (str): path of the annotated picture.
        counts (Counter): of the names of the classes.
        best (dict[str, float]): of each of them, the highest score.
    """

    path: str
    picture: str
    counts: Counter = field(default_factory=Counter)
    best: Dict[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """What :func:`predict_files` did.

    Args:
        predictions (list[Prediction]): of the images that could be read.
        skipped (list[tuple[str, str]]): path of each other image, and why.
        results_file (str): detections, a list in the COCO results format.
        images_file (str): images and categories in the COCO format, which say what the ids of the
            results stand for.
    """

    predictions: List[Prediction]
    skipped: List[Tuple[str, str]]
    results_file: str
    images_file: str


def find_images(inputs: List[str], output_dir: str = "") -> List[Tuple[str, str]]:
    """Find the images that a user names.

    Args:
        inputs (list[str]): images, folders (with all folders in them), globs, tar files, members of
            one (``images.tar!/a.jpg``) and addresses of images (``https://…``).
        output_dir (str): passed over when it is in one of the folders.

    Returns:
        list[tuple[str, str]]: the path of each image, once and in the order of ``inputs``, and a
        name that no other has, for its output.

    Raises:
        UserError: if one of them is not there or has no image in it.
    """
    found: Dict[str, str] = {}
    for path in inputs:
        if is_remote(path):
            found.setdefault(path, os.path.basename(urlparse(path).path) or "image")
            continue
        if split_tar_path(path) is not None or path.endswith(".tar"):
            named = _images_in_tar(path)
        elif os.path.isfile(path):
            named = [(path, os.path.basename(path))]
        elif os.path.isdir(path):
            named = [(p, os.path.relpath(p, path)) for p in _images_in(path, output_dir)]
            if not named:
                raise UserError(f"the folder {path} has no images in it")
        elif glob.has_magic(path):
            matches = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
            named = [(p, os.path.basename(p)) for p in matches]
            if not named:
                raise UserError(f"no file matches {path}")
        else:
            raise UserError(f"there is no image or folder {path}")
        for image, name in named:
            found.setdefault(os.path.normpath(image), name)
    return list(zip(found, distinct(found.values())))


def _images_in_tar(path: str) -> List[Tuple[str, str]]:
    tar, member = split_tar_path(path) or (path, "")
    try:
        members = [member] if member else open_tar(tar).names()
    except OSError as e:
        raise UserError(f"cannot read {tar}: {e.strerror or e}") from None
    images = [name for name in members if member or name.lower().endswith(_endings())]
    if not images:
        raise UserError(f"the tar file {tar} has no images in it")
    return [(f"{tar}!/{name}", name) for name in sorted(images)]


def _endings() -> Tuple[str, ...]:
    Image.init()
    return tuple(ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN)


def _images_in(folder: str, output_dir: str) -> List[str]:
    endings = _endings()
    output_dir = os.path.realpath(output_dir) if output_dir else None
    images = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(parent, f)) != output_dir]
        names = [name for name in names if name.lower().endswith(endings) and not is_video(name)]
        images += [os.path.join(parent, name) for name in names]
    return sorted(images)


def distinct(names: Iterable[str]) -> List[str]:
    """Names of files without their endings, each with a number where another has it already."""
    taken, distinct = set(), []
    for name in names:
        stem, n = os.path.splitext(name)[0], 1
        candidate = stem
        while candidate in taken:
            n += 1
            candidate = f"{stem}_{n}"
        taken.add(candidate)
        distinct.append(candidate)
    return distinct


def predict_files(
    predictor: Predictor, inputs: List[str], output_dir: str, batch_size: int = 1
) -> Summary:
    """Detect objects in images, and write pictures and results.

    Args:
        predictor (Predictor): of the model.
        inputs (list[str]): as for :func:`find_images`.
        output_dir (str): gets ``pictures/NAME.jpg``, ``results.json`` and ``images.json``; made
            if it is not there.
        batch_size (int): images at a time.

    Returns:
        Summary

    Raises:
        UserError: for inputs without images, and for a folder that cannot be written to.
    """
    if batch_size < 1:
        raise UserError(f"--batch is {batch_size}; it must be 1 or more")
    images = find_images(inputs, output_dir)
    pictures = os.path.join(output_dir, "pictures")
    _make_folder(pictures)
    metadata = class_metadata(predictor.classes.names)
    predictions, skipped, results, records = [], [], [], []
    for batch in _batches(predictor, images, batch_size, skipped):
        outputs = predictor([prepared for _, _, _, prepared in batch])
        for (path, name, image, _), instances in zip(batch, outputs):
            record = {
                "id": len(records) + 1,
                "file_name": path,
                "height": image.shape[0],
                "width": image.shape[1],
            }
            records.append(record)
            results += predictor.to_coco(instances, record["id"])
            prediction = _summarise(
                path, os.path.join(pictures, f"{name}.jpg"), instances, metadata
            )
            predictions.append(prediction)
            rgb = image if predictor.input_format == "RGB" else image[:, :, ::-1]
            _save(draw_detections(rgb, instances, metadata), prediction.picture)
    categories = [
        {"id": i, "name": name} for i, name in zip(predictor.classes.ids, predictor.classes.names)
    ]
    summary = Summary(
        predictions,
        skipped,
        os.path.join(output_dir, "results.json"),
        os.path.join(output_dir, "images.json"),
    )
    _write_json(summary.results_file, results)
    content = {"info": {}, "images": records, "annotations": [], "categories": categories}
    _write_json(summary.images_file, content)
    return summary


def _batches(
    predictor: Predictor,
    images: List[Tuple[str, str]],
    batch_size: int,
    skipped: List[Tuple[str, str]],
) -> Iterator[List[Tuple[str, str, np.ndarray, Dict[str, Any]]]]:
    """Yield path, name, image and prepared image of the next images; skip what is unreadable."""
    batch = []
    with tqdm(images, unit="image", disable=len(images) < 2, file=sys.stderr) as progress:
        for path, name in progress:
            try:
                image = read_image(path, predictor.input_format)
                batch.append((path, name, image, predictor.prepare(image)))
            except Exception as e:  # a shape that cannot be resized, beside what cannot be read
                skipped.append((path, _reason(e)))
                progress.write(f"skipped {path}: {_reason(e)}", file=sys.stderr)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _reason(error: Exception) -> str:
    if isinstance(error, BadImageError):
        return error.reason
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]


def _summarise(path: str, picture: str, instances: Instances, metadata: Metadata) -> Prediction:
    prediction = Prediction(path, picture)
    for index, score in zip(instances.pred_classes.tolist(), instances.scores.tolist()):
        name = metadata.thing_classes[index]
        prediction.counts[name] += 1
        prediction.best[name] = max(score, prediction.best.get(name, 0.0))
    return prediction


def draw_detections(image: np.ndarray, instances: Instances, metadata: Metadata) -> np.ndarray:
    """An annotated picture.

    Args:
        image (ndarray): RGB, (H, W, 3), uint8.
        instances (Instances): what was found in it.
        metadata (Metadata): of :func:`class_metadata`.

    Returns:
        ndarray: RGB, enlarged where labels could not be read on it.
    """
    # In this mode an object has the colour of its class, but for a little noise.
    picture = Visualizer(image, metadata, readable_scale(image), ColorMode.SEGMENTATION)
    return picture.draw_instance_predictions(instances).get_image()


def class_metadata(names: Iterable[str]) -> Metadata:
    """Names and colours of the classes, as Detectron2's visualizer takes them."""
    names = list(names)
    colors = class_colors(len(names))
    return Metadata(name="predictions", thing_classes=names, thing_colors=colors)


def _save(drawn: np.ndarray, path: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.fromarray(drawn).save(path, quality=92)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror or e}") from e


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output: cannot make the folder {folder}: {e.strerror}") from e
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output: cannot write to the folder {folder}")


def _write_json(path: str, content: Any) -> None:
    try:
        with open(path, "w") as f:
            json.dump(content, f)
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from e


def format_table(summary: Summary) -> str:
    """A table of the images and what is in them, with a line of totals below.

    Args:
        summary (Summary): of :func:`predict_files`.

    Returns:
        str: one line an image, and of many images the first ones only.
    """
    shown = summary.predictions[:_MAX_ROWS]
    width = max([len("image"), *(len(_shorten(p.path)) for p in shown)])
    lines = [f"{'image':{width}}  objects  classes, each with its number and highest score"]
    for prediction in shown:
        classes = ", ".join(
            f"{name} {number} ({prediction.best[name]:.2f})"
            for name, number in prediction.counts.most_common()
        )
        number = prediction.counts.total()
        lines.append(f"{_shorten(prediction.path):{width}}  {number:7}  {classes}".rstrip())
    if len(summary.predictions) > len(shown):
        lines.append(f"... and {_count(len(summary.predictions) - len(shown), 'image')} more")
    totals = sum((p.counts for p in summary.predictions), Counter())
    line = f"{_count(len(summary.predictions), 'image')}, {_count(totals.total(), 'object')}"
    if totals:
        line += ": " + ", ".join(f"{number} {name}" for name, number in totals.most_common())
    if summary.skipped:
        line += f"; {len(summary.skipped)} skipped"
    return "\n".join([*lines, line])


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _shorten(path: str) -> str:
    return path if len(path) <= _NAME_WIDTH else "..." + path[3 - _NAME_WIDTH :]
