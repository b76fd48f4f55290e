"""The start of a training, as far as its data set is concerned."""

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from rsb_d2 import add_rsb_config
from rsb_d2.data import register_coco_json


def start(files, folder, caplog):
    """Register as a new process does; return the records, and the lines that were logged."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "mine" in catalog.list():
            catalog.remove("mine")
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.DATASETS.COCO_JSON = [["mine", *files]]
    cfg.DATASETS.CACHE = str(folder)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mine",), ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    caplog.clear()
    register_coco_json(cfg)
    return DatasetCatalog.get("mine"), [r.getMessage() for r in caplog.records]


def the_file(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def is_read(lines):
    return any(line.startswith("Reading ") for line in lines)
