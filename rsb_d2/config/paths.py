"""The keys of a config that hold paths."""

import os
from typing import Any, Tuple

from detectron2.config import CfgNode

# Keys of DATASETS that hold a path, or a list of paths ...
_PATHS_OF_DATASETS = ("CACHE", "PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST")
# ... and those that hold lists of entries, with the places of the paths in an entry.
_PATHS_IN_ENTRIES = {"COCO_JSON": (1, 2), "IMAGE_FOLDER": (1,), "TIMM": (2,)}


def expand_paths(cfg: CfgNode) -> CfgNode:
    """Replace ``~`` at the beginning of every path in a config by the user's folder.

    Args:
        cfg (CfgNode): with this project's keys; not changed if frozen.

    Returns:
        CfgNode: the same one, or where a frozen one has such a path, a copy.
    """
    if cfg.is_frozen():
        expanded = cfg.clone()
        expanded.defrost()
        expand_paths(expanded).freeze()
        return cfg if expanded == cfg else expanded
    cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS = map(_expand, (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS))
    for key in _PATHS_OF_DATASETS:
        cfg.DATASETS[key] = _expand(cfg.DATASETS[key])
    for key, places in _PATHS_IN_ENTRIES.items():
        entries = cfg.DATASETS[key]
        if isinstance(entries, (list, tuple)):
            cfg.DATASETS[key] = type(entries)(_expand_entry(entry, places) for entry in entries)
    return cfg


def _expand(value: Any) -> Any:
    """A path or a list of paths; any other value, which a check reports, as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_expand, value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def _expand_entry(entry: Any, places: Tuple[int, ...]) -> Any:
    if not isinstance(entry, (list, tuple)):
        return entry
    return type(entry)(_expand(v) if i in places else v for i, v in enumerate(entry))
