"""The checkpoints in the folder of a run: the newest complete one, and those to remove."""

import copy
import logging
import math
import os
import re
import shutil
from typing import Any, Dict, List, NamedTuple, Tuple

from ..errors import UserError
from ..files import errors_of_writing, move_aside
from .files import read_checkpoint

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last_checkpoint"

# The key of a checkpoint under which the config of its run stands, in YAML.
CONFIG_KEY = "config"

# The ids of the run by logger, in JSON.
LOGGER_RUNS = "loggers.json"

_PERIODIC = re.compile(r"model_(\d{7})\.pth")
# The temporary names of rsb_d2.files.whole_file.
_LEFTOVER = re.compile(r"(model_\w+\.pth|last_checkpoint|best\.json|loggers\.json)\.\d+\.tmp")


# Files that the programs write into OUTPUT_DIR; all others in it belong to the user.
_FILES = re.compile(
    r"model_(\d{7}|final|final_ema|best)\.pth|last_checkpoint|best\.json|metrics\.json"
    r"|loggers\.json"
    r"|(curves|detections|predictions|training_images)\.png|inference(_TTA)?|ema|predictions"
    r"|config\.yaml|log\.txt(\.rank\d+)?|events\.out\.tfevents\..*"
)
_CONFIG_AND_LOGS = re.compile(r"config\.yaml|log\.txt.*")
_METRICS = "metrics.json"


def files_of_run(output_dir: str) -> List[str]:
    """List the files and folders that a training or an evaluation has written into a folder.

    Empty if there is only the start of a run: its config, its log and files without values.
    """
    if not os.path.isdir(output_dir):
        return []
    names = sorted(filter(_FILES.fullmatch, os.listdir(output_dir)))
    empty = [n for n in names if _CONFIG_AND_LOGS.fullmatch(n) or n.startswith("events.")]
    metrics = os.path.join(output_dir, _METRICS)
    if os.path.isfile(metrics) and not os.path.getsize(metrics):
        empty.append(_METRICS)
    return names if len(empty) < len(names) else []


def set_aside(output_dir: str, names: List[str], *, has_begun: bool = False) -> Dict[str, str]:
    """Move the files of an earlier run out of the way of a new one.

    Args:
        output_dir (str): the local folder of both runs.
        names (list[str]): of :func:`files_of_run`.
        has_begun (bool): whether config, log and ``metrics.json`` already belong to the new run.

    Returns:
        dict[str, str]: the new path of each file or folder by its name.
    """
    if has_begun:
        names = [name for name in names if not _CONFIG_AND_LOGS.fullmatch(name)]
    if not names:
        return {}
    folder = move_aside(output_dir, [n for n in names if not (has_begun and n == _METRICS)])
    if has_begun and _METRICS in names:
        path = os.path.join(output_dir, _METRICS)
        with errors_of_writing(path):
            shutil.copy2(path, folder)
            os.truncate(path, 0)  # its writer appends
    weights = [name for name in names if name.endswith(".pth")]
    logger.warning(
        f"{output_dir} holds a run: its {len(names)} files and folders "
        f"({', '.join(weights or names)}) are now in {folder}."
    )
    return {name: os.path.join(folder, name) for name in names}


def has_weights(output_dir: str) -> bool:
    """Whether the folder holds a run that has written weights."""
    return any(name.endswith(".pth") for name in files_of_run(output_dir))


def has_run(output_dir: str) -> bool:
    """Whether the folder holds a run to resume, by its ``last_checkpoint``, as in Detectron2."""
    return os.path.isfile(os.path.join(output_dir, LAST_CHECKPOINT))


class _Found(NamedTuple):
    """The result of the last search; the tensors are mapped from the file."""

    candidates: List[Tuple[Any, ...]]  # path, inode, size and time of the considered files
    path: str  # of the one to resume from
    content: Dict[str, Any]


# Kept from the comparison of the config, before anything is built, until the weights are loaded.
_last_found: _Found | None = None


def find_newest_complete(output_dir: str) -> str:
    """Find the checkpoint that ``--resume`` continues from, and report damaged ones.

    It is the checkpoint that ``last_checkpoint`` names, or a newer one that was written before it
    could be named there; if these are damaged, the newest one before them. It is read completely,
    but only once, as long as nothing changes in the folder.
    """
    return _find(output_dir).path


def read_newest_entry(output_dir: str, key: str) -> Any:
    """Read an entry, without tensors, of the checkpoint that :func:`find_newest_complete` finds."""
    return _find(output_dir).content.get(key)


def pop_found(path: str) -> Dict[str, Any] | None:
    """Return the content of a checkpoint if it is the one that was found last, and forget it."""
    global _last_found
    found, _last_found = _last_found, None
    if found is None or found.path != path or _identity(path) not in found.candidates:
        return None
    return copy.deepcopy(found.content)  # out of the file


def _find(output_dir: str) -> _Found:
    global _last_found
    paths = _newest_first(output_dir)
    candidates = list(map(_identity, paths))
    if _last_found is not None and _last_found.candidates == candidates:
        return _last_found
    _last_found, damaged = None, []
    for path in paths:
        try:
            content = read_checkpoint(path, map_tensors=True)
        except UserError as e:
            damaged.append(str(e))
            continue
        for message in damaged:
            logger.warning(f"--resume: {message}. The checkpoint before it is taken: {path}")
        _last_found = _Found(candidates, path, content)
        return _last_found
    raise UserError(
        f"--resume: none of the checkpoints in {output_dir} can be read "
        f"({'; '.join(damaged)}). Start again without --resume, or in another OUTPUT_DIR"
    )


def _identity(path: str) -> Tuple[Any, ...]:
    """Return values that distinguish a file from one that replaces it."""
    try:
        status = os.stat(path)
    except OSError:
        return (path,)
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def remove_leftovers(output_dir: str) -> None:
    """Remove temporary files and half a line of ``metrics.json``, left by killed processes."""
    for name in filter(_LEFTOVER.fullmatch, os.listdir(output_dir)):
        os.remove(os.path.join(output_dir, name))
    metrics = os.path.join(output_dir, "metrics.json")
    if os.path.isfile(metrics):
        with open(metrics, "rb+") as f:
            text = f.read()
            if not text.endswith(b"\n"):
                f.truncate(text.rfind(b"\n") + 1)


def remove_old_checkpoints(output_dir: str, iteration: int, num_kept: int) -> None:
    """Remove all but the newest ``num_kept`` periodic checkpoints up to an iteration.

    Checkpoints with higher numbers belong to another run, and stay.
    """
    names = sorted(number for number in _periodic(output_dir) if number[0] <= iteration)
    for _, name in names[:-num_kept]:
        os.remove(os.path.join(output_dir, name))


def _periodic(output_dir: str) -> List[Tuple[int, str]]:
    matches = map(_PERIODIC.fullmatch, os.listdir(output_dir))
    return [(int(match[1]), match[0]) for match in matches if match]


def _newest_first(output_dir: str) -> List[str]:
    """The checkpoints to resume from, without those that an earlier, longer run has left."""
    tag = os.path.join(output_dir, LAST_CHECKPOINT)
    with open(tag) as f:
        tagged = f.read().strip()
    periodic = sorted(_periodic(output_dir), reverse=True)
    # model_final.pth is the last of all.
    number_of_tagged = {name: number for number, name in periodic}.get(tagged, math.inf)
    time_of_tag = os.path.getmtime(tag)
    paths = [(number, os.path.join(output_dir, name)) for number, name in periodic]
    later = [p for n, p in paths if n > number_of_tagged and os.path.getmtime(p) >= time_of_tag]
    earlier = [p for n, p in paths if n < number_of_tagged]
    return [*later, os.path.join(output_dir, tagged), *earlier]
