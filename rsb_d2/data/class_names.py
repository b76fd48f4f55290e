"""The names of a model's classes: from the data into the config and every checkpoint, and back."""

from dataclasses import dataclass
from typing import Any, Dict, List

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from .coco_json import register_coco_json


@dataclass(frozen=True)
class ClassNames:
    """The names and ids of a model's classes.

    Args:
        names (tuple[str]): of the classes, in the order of the model's outputs.
        ids (tuple[int]): their category ids in the annotation file, in the same order.
    """

    names: tuple
    ids: tuple


class StoredClassNames:
    """A checkpointable for an entry of every checkpoint: the names, or the ids, of the classes."""

    def __init__(self, values: Any):
        self._values = list(values)

    def state_dict(self) -> List[Any]:
        return self._values

    def load_state_dict(self, values: List[Any]) -> None:
        """Ignore the values: the classes are those of the data that is trained on."""


def fill_class_names(cfg: CfgNode) -> None:
    """Write the classes of the data into ``DATASETS.CLASS_NAMES`` and ``.CLASS_IDS``.

    Data sets without class names do not change the two.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        found = _from_metadata(name)
        if found is not None:
            cfg.DATASETS.CLASS_NAMES, cfg.DATASETS.CLASS_IDS = list(found.names), list(found.ids)
            return


def stored_class_names(cfg: CfgNode) -> Dict[str, StoredClassNames]:
    """Return the checkpointables ``class_names`` and ``class_ids`` of every checkpoint."""
    cfg = cfg.clone()
    cfg.defrost()
    fill_class_names(cfg)
    return {
        "class_names": StoredClassNames(cfg.DATASETS.CLASS_NAMES),
        "class_ids": StoredClassNames(cfg.DATASETS.CLASS_IDS),
    }


def find_class_names(cfg: CfgNode, checkpoint: Dict[str, Any], num_classes: int) -> ClassNames:
    """Find the names of a trained model's classes.

    They are from the checkpoint, else from ``DATASETS.CLASS_NAMES``, else from the data sets of the
    config; otherwise ``"class 0"`` and so on, with ids from 1 on. A source with another number of
    classes is skipped.
    """
    sources = (
        lambda: _from_lists(checkpoint.get("class_names"), checkpoint.get("class_ids")),
        lambda: _from_lists(cfg.DATASETS.CLASS_NAMES, cfg.DATASETS.CLASS_IDS),
        lambda: _from_datasets(cfg),
    )
    for source in sources:
        found = source()
        if found is not None and len(found.names) == num_classes:
            return found
    return ClassNames(
        tuple(f"class {i}" for i in range(num_classes)), tuple(range(1, num_classes + 1))
    )


def _from_lists(names: Any, ids: Any) -> ClassNames | None:
    if not names:
        return None
    if not ids or len(ids) != len(names):
        ids = range(1, len(names) + 1)
    return ClassNames(tuple(str(name) for name in names), tuple(int(i) for i in ids))


def _from_datasets(cfg: CfgNode) -> ClassNames | None:
    try:
        register_coco_json(cfg, eval_only=True)
    except UserError:
        pass  # the data need not be where the model is used
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        found = _from_metadata(name)
        if found is not None:
            return found
    return None


def _from_metadata(dataset_name: str) -> ClassNames | None:
    if dataset_name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(dataset_name)
    names = metadata.get("thing_classes")
    index_of_id = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    return _from_lists(names, sorted(index_of_id, key=index_of_id.get))
