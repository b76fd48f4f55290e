"""A folder that is written whole, left alone when complete, and never takes another's place."""

import json
import os
import tempfile
from typing import Any, Callable, Dict, Sequence

from ....errors import UserError
from ....files import errors_of_writing

MANIFEST = "sample.json"

Manifest = Dict[str, Any]


def make_whole_folder(
    folder: str,
    manifest: Manifest,
    subfolders: Sequence[str],
    write: Callable[[str, Manifest], None],
    is_filled: Callable[[str, Manifest], bool],
) -> None:
    """Make a folder of files that a program can make again, all or nothing.

    Args:
        folder (str): it must not be there, be empty, or be one that was made by the same program.
            May begin with ``~``.
        manifest (dict): ``made_by``, the program, and what it was made with; kept in the folder. A
            folder with the same is left as it is, one with another is made anew.
        subfolders (sequence of str): names of all that is in it.
        write (callable): makes and fills a folder of this name; the manifest is written after it.
        is_filled (callable): whether the folder of this name has all its files.

    Raises:
        UserError: if the folder holds something else, or cannot be written.
    """
    folder = os.path.realpath(os.path.expanduser(folder))

    def is_complete() -> bool:
        return _read_manifest(folder) == manifest and is_filled(folder, manifest)

    if is_complete():
        return
    _check_may_replace(folder, manifest["made_by"], subfolders)
    with errors_of_writing(folder):
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        # Made next to its place and then renamed, so that half of it is never taken for the whole.
        with tempfile.TemporaryDirectory(prefix=".sample-", dir=os.path.dirname(folder)) as scratch:
            new, old = os.path.join(scratch, "new"), os.path.join(scratch, "old")
            write(new, manifest)
            write_json(os.path.join(new, MANIFEST), manifest)
            if os.path.exists(folder):
                os.rename(folder, old)
            try:
                os.rename(new, folder)
            except OSError:  # another process was faster
                if not is_complete():
                    raise


def check_int(name: str, value: int, low: int, high: int | None = None) -> int:
    """Return an integer argument that is in its range.

    Raises:
        UserError: if it is not.
    """
    if type(value) is not int or value < low or (high is not None and value > high):
        range_ = f"of {low} or more" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {value!r}; it must be an integer {range_}")
    return value


def num_files(*path: str) -> int:
    """How many entries a folder has; 0 if there is none."""
    folder = os.path.join(*path)
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0


def write_json(path: str, content: Dict[str, Any]) -> None:
    """Write a file of JSON."""
    with open(path, "w") as f:
        f.write(json.dumps(content, separators=(",", ":")) + "\n")


def _read_manifest(folder: str) -> Manifest | None:
    try:
        with open(os.path.join(folder, MANIFEST)) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def _check_may_replace(folder: str, made_by: str, subfolders: Sequence[str]) -> None:
    if not os.path.lexists(folder):
        return
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is a file; name a folder for the sample data")
    names = set(os.listdir(folder))
    manifest = _read_manifest(folder)
    is_sample = isinstance(manifest, dict) and manifest.get("made_by") == made_by
    others = sorted(names - {MANIFEST, *subfolders}) if is_sample else sorted(names)
    if others:
        raise UserError(
            f"{folder} holds what is not sample data ({', '.join(others[:3])}); "
            "name another folder, or empty it"
        )
