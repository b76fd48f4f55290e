"""Ultralytics' ``data.yaml``: the names of the classes, and which images are in which split."""

import os
from typing import Any, Dict, List, NamedTuple

import yaml

from .....data.images import is_image_name
from .....errors import UserError, first
from .....files import files_below
from ..records import SPLIT_NAMES


class DataYaml(NamedTuple):
    """What such a file says.

    Args:
        names (list[str]): of the classes, by index.
        images (dict[str, list[str]]): paths of the images of ``train``, ``val`` and ``test``.
        folders (list[str]): that the images were looked for in.
        repeated (int): images that a list has more than once.
        keypoints (int): numbers of keypoints that each row has after its box.
    """

    names: List[str]
    images: Dict[str, List[str]]
    folders: List[str]
    repeated: int
    keypoints: int


def read_data_yaml(path: str) -> DataYaml:
    """Read it, and list the images.

    Args:
        path (str): of the file.

    Raises:
        UserError: if it cannot be read, has no names or no splits, or names what is not there.
    """
    content = _load(path)
    names = _names(content, path)
    root = _root(content, path)
    images: Dict[str, List[str]] = {}
    folders: List[str] = []
    repeated = 0
    for key, split in SPLIT_NAMES.items():
        if not content.get(key):
            continue
        entries = content[key] if isinstance(content[key], list) else [content[key]]
        found = [image for entry in entries for image in _images(entry, root, path, key, folders)]
        images.setdefault(split, []).extend(dict.fromkeys(found))
        repeated += len(found) - len(set(found))
    if not any(images.values()):
        raise UserError(f"{path} names no images: write 'train: FOLDER', and 'val:' likewise")
    return DataYaml(names, images, folders, repeated, _keypoints(content, path))


def _load(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8-sig") as f:
            # All values stay texts: a class may be called "no" or "007".
            content = yaml.load(f, Loader=yaml.BaseLoader)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: is not valid YAML") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no data.yaml: it must have the keys 'train', 'val' and 'names'")
    return content


def _names(content: Dict[str, Any], path: str) -> List[str]:
    names, count = content.get("names"), content.get("nc")
    if not names and isinstance(count, str) and count.isdigit() and int(count):
        return [f"class_{i}" for i in range(int(count))]  # as Ultralytics calls them
    if isinstance(names, dict):
        indices = {int(key): name for key, name in names.items() if key.isdigit()}
        if sorted(indices) != list(range(len(names))):
            raise UserError(
                f"{path}: the keys of 'names' must be 0 ... {len(names) - 1}, each once; "
                f"they are {first(names)}"
            )
        names = [indices[i] for i in range(len(indices))]
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise UserError(f"{path} has no 'names': list the classes, as 'names: [cat, dog]'")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{path}: 'names' has {first(doubled)} more than once")
    if count is not None and count != str(len(names)):
        raise UserError(f"{path}: 'nc' is {count}, but there are {len(names)} 'names'")
    return names


def _keypoints(content: Dict[str, Any], path: str) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if isinstance(shape, list) and len(shape) == 2 and all(str(n).isdigit() for n in shape):
        return int(shape[0]) * int(shape[1])
    raise UserError(f"{path}: 'kpt_shape' is {shape}; write two integers, as [17, 3]")


def _root(content: Dict[str, Any], path: str) -> str:
    """The folder that paths start from: ``path``, itself relative to the file's folder."""
    folder = os.path.dirname(os.path.abspath(path))
    named = content.get("path")
    if not isinstance(named, str) or not named:
        return folder
    named = os.path.expanduser(named)
    for candidate in (os.path.join(folder, named), os.path.abspath(named)):
        if os.path.isdir(candidate):
            return os.path.normpath(candidate)
    return folder  # of another machine, or of the folder that Ultralytics keeps data in


def _images(entry: Any, root: str, path: str, key: str, folders: List[str]) -> List[str]:
    place = _place(entry, root) if isinstance(entry, str) and entry else None
    if place is None:
        raise UserError(
            f"{path}: '{key}' is {entry}, but there is no such folder or list in {root}"
        )
    if os.path.isdir(place):
        folders.append(place)
        files, passed_over = files_below(place)
        images = list(filter(is_image_name, files))
        if not images:
            others = first((os.path.relpath(file, place) for file in files + passed_over), 3)
            there = f"; there are {others}" if others else ""
            raise UserError(f"{path}: '{key}' is {entry}, a folder without images{there}")
        return [os.path.normpath(image) for image in images]
    if is_image_name(place):
        return [os.path.normpath(place)]
    try:
        with open(place, encoding="utf-8-sig") as f:
            lines = [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: '{key}' is {place}, which is no list of images") from None
    images = [_listed(line, os.path.dirname(place), root) for line in lines]
    missing = [line for line, image in zip(lines, images) if image is None]
    if missing or not images:
        what = f"names images that are not there ({first(missing)})" if missing else "is empty"
        raise UserError(f"{place} {what}")
    return images


def _place(entry: str, root: str) -> str | None:
    entry = os.path.expanduser(entry.replace("\\", "/"))
    # The last one is how files of Roboflow are to be read: they lie beside the folders that they
    # name as ../train/images.
    for candidate in (entry, entry[3:] if entry.startswith("../") else entry):
        candidate = os.path.join(root, candidate)
        if os.path.exists(candidate):
            return os.path.normpath(candidate)
    return None


def _listed(line: str, folder: str, root: str) -> str | None:
    line = line.replace("\\", "/")
    for start in (folder, root, os.getcwd()):
        candidate = os.path.normpath(os.path.join(start, line))
        if os.path.isfile(candidate):
            return candidate
    return None
