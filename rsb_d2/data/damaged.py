"""Images of test sets that cannot be decoded, found before a training starts.

``INPUT.DAMAGED_IMAGES`` decides how they are handled: see ``rsb_d2/config/defaults.py``.
"""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, NamedTuple, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..errors import UserError, first
from .dataset_dicts import standardize
from .images import BadImageError, is_image_name, read_image, reads_partial_images

logger = logging.getLogger(__name__)


class Damaged(NamedTuple):
    """The images of a data set that cannot be decoded.

    Args:
        reasons (dict[str, str]): of each unusable file, by its path.
        image_ids (list): ``image_id`` of these, where the data set has them.
        partial (list[str]): files that are read as far as they go.
    """

    reasons: Dict[str, str]
    image_ids: List[Any]
    partial: List[str]


def find_damaged(
    cfg: CfgNode, name: str, records: Sequence[dict], *, again: bool = False
) -> Damaged:
    """Decode the images of a data set, once in a process; processes share them out.

    Args:
        cfg (CfgNode): its ``INPUT.FORMAT`` and ``.DAMAGED_IMAGES``.
        name (str): of the data set; all processes call this for the same one.
        records (sequence of dict): of the data set, in Detectron2's dataset format.
        again (bool): decode them again.

    Returns:
        Damaged: the same in all processes.
    """
    metadata, mode = MetadataCatalog.get(name), cfg.INPUT.DAMAGED_IMAGES
    found = metadata.get("damaged_images", {})
    if again or mode not in found:
        start = time.perf_counter()
        found[mode] = _decode_all(cfg, records)
        metadata.damaged_images = found
        seconds = time.perf_counter() - start
        if seconds > 1:
            logger.info(f"Decoding the {len(records)} images of {name} took {seconds:.1f} s")
    return found[mode]


def _decode_all(cfg: CfgNode, records: Sequence[dict]) -> Damaged:
    rank, world_size = comm.get_rank(), comm.get_world_size()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    reads_partial, mode = reads_partial_images(cfg), cfg.INPUT.DAMAGED_IMAGES
    found = Damaged({}, [], [])

    def decode(index: int) -> None:
        record = standardize(records[index])
        path, size = record.get("file_name", ""), None
        # Another mapper may read other files, and downloads take minutes.
        if mode in ("auto", "error") and ("://" in path or not is_image_name(path)):
            return
        if "width" in record and "height" in record:
            size = record["width"], record["height"]
        try:
            read_image(path, cfg.INPUT.FORMAT, size)
            return
        except BadImageError as e:
            reason = e.reason
        if reads_partial:
            try:
                read_image(path, cfg.INPUT.FORMAT, size, partial=True)
                found.partial.append(path)
                return
            except BadImageError:
                pass
        found.reasons[path] = reason
        found.image_ids.append(record.get("image_id"))

    with ThreadPoolExecutor(max(cores // world_size, 1)) as threads:
        list(threads.map(decode, range(rank, len(records), world_size)))
    parts = comm.all_gather(found)
    return Damaged(
        dict(sorted(pair for part in parts for pair in part.reasons.items())),
        [i for part in parts for i in part.image_ids],
        sorted(path for part in parts for path in part.partial),
    )


def check_damaged(cfg: CfgNode, name: str, records: Sequence[dict], *, can_skip: bool) -> None:
    """Report the damaged images of a test set before a training.

    Args:
        cfg, name, records: as of :func:`find_damaged`.
        can_skip (bool): whether the evaluator leaves out the objects of skipped images.

    Raises:
        UserError: if there are any, unless ``INPUT.DAMAGED_IMAGES`` allows them.
    """
    mode = cfg.INPUT.DAMAGED_IMAGES
    damaged = find_damaged(cfg, name, records, again=True)
    count = f"{len(damaged.reasons)} of {len(records)} images of {name} cannot be used"
    named = first([f"{path}: {reason}" for path, reason in damaged.reasons.items()], 3)
    if len(damaged.reasons) == len(records):
        raise UserError(f"DATASETS.TEST: {count} ({named})")
    if damaged.reasons and not (mode == "skip" and can_skip):
        fix = "INPUT.DAMAGED_IMAGES skip, which leaves them out, or partial" if can_skip else ""
        fix = fix or "INPUT.DAMAGED_IMAGES partial; its evaluator counts all images"
        raise UserError(f"DATASETS.TEST: {count} ({named}); replace them, or write {fix}")
    for text in damage_notes(damaged, name, len(records)):
        logger.warning(text)


def damage_notes(damaged: Damaged, name: str, num_images: int) -> List[str]:
    """Return a line each for the images that are skipped and read in part, with their number."""
    texts = {"skipped": list(damaged.reasons), "read as far as they go": damaged.partial}
    return [
        f"{name}: {len(paths)} of {num_images} images are damaged and {text} ({first(paths, 3)})"
        for text, paths in texts.items()
        if paths
    ]


def without_damaged(
    cfg: CfgNode, name: str, records: Sequence[dict], chosen: Sequence[dict] | None = None
) -> Sequence[dict]:
    """Return records without those that ``INPUT.DAMAGED_IMAGES`` skips in evaluations.

    Args:
        cfg, name, records: as of :func:`find_damaged`.
        chosen (sequence of dict or None): records to return, if they are not all of the data set.
    """
    chosen = records if chosen is None else chosen
    if cfg.INPUT.get("DAMAGED_IMAGES") != "skip":
        return chosen
    reasons = find_damaged(cfg, name, records).reasons
    if not reasons:
        return chosen
    kept = [
        i
        for i, record in enumerate(chosen)
        if os.fspath(record.get("file_name", "")) not in reasons
    ]
    return chosen.select(kept) if hasattr(chosen, "select") else [chosen[i] for i in kept]
