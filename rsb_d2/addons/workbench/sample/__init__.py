"""Sample data: pictures of shapes with boxes and masks, made on the machine in seconds.

    python -m rsb_d2.addons.workbench.sample FOLDER

writes COCO-format data to train and evaluate on, the same bytes from the same seed::

    FOLDER/train/000001.jpg ...
    FOLDER/val/000001.jpg ...
    FOLDER/annotations/train.json, val.json
    FOLDER/sample.json                        what it was made with
"""

from detectron2.config import CfgNode
from detectron2.utils import comm

from .draw import CLASS_NAMES
from .folder import make_sample_data
from .objects import make_sample_objects


def make_configured(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Make the data of ``DATASETS.SAMPLE_DATA`` and ``.SAMPLE_OBJECTS``, if it is missing."""
    if comm.is_main_process():
        if cfg.DATASETS.SAMPLE_DATA:
            make_sample_data(cfg.DATASETS.SAMPLE_DATA)
        if cfg.DATASETS.SAMPLE_OBJECTS:
            make_sample_objects(cfg.DATASETS.SAMPLE_OBJECTS)
    comm.synchronize()


__all__ = ["CLASS_NAMES", "make_configured", "make_sample_data", "make_sample_objects"]
