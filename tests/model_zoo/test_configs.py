"""Every config in configs/, found there rather than listed: it builds, trains and evaluates."""

import json
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from detectron2.utils.events import EventStorage
from PIL import Image

from rsb_d2 import Trainer
from rsb_d2.addons.workbench.sample import CLASS_NAMES, make_sample_data
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from tests.helpers.paths import CONFIGS

FOLDER = CONFIGS
CONFIGS = sorted(path.name for path in FOLDER.glob("*.yaml"))
# The others are of these with another backbone, schedule or augmentation, or they are trained on a
# small backbone: masks and panoptic FPN in tests/programs, the cascade in test_lazy_configs.py.
QUICK = ("frcnn_rsb_sample.yaml", "retinanet_rsb_1x.yaml")

# What stands in for COCO, a GPU and hours: nothing of the model or of its optimization.
SMALL = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.WEIGHTS", ""),
    *("MODEL.ROI_HEADS.NUM_CLASSES", len(CLASS_NAMES)),
    *("MODEL.RETINANET.NUM_CLASSES", len(CLASS_NAMES)),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),  # what is not trained detects something, too
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    *("DATALOADER.NUM_WORKERS", 0),
    *("INPUT.MIN_SIZE_TRAIN", (64,)),
    *("INPUT.MIN_SIZE_TEST", 64),
    *("INPUT.LSJ.SIZE", 64),
    *("SOLVER.IMS_PER_BATCH", 1),
    *("SOLVER.MAX_ITER", 2),
    *("SOLVER.STEPS", (1,)),
    *("SOLVER.WARMUP_ITERS", 1),
    *("TEST.EVAL_PERIOD", 0),
    *("TEST.DETECTIONS_PER_IMAGE", 10),
]
PANOPTIC = "rsb_tiny_panoptic"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs") / "sample"
    make_sample_data(str(folder), num_train=2, num_val=2, image_size=64)
    return folder


@pytest.fixture(scope="module")
def panoptic(sample):
    """The sample data with a map of stuff: sky above, ground below, 0 where there are objects."""
    json_file = sample / "annotations" / "train.json"
    content = json.loads(json_file.read_text())
    stuff = sample / "stuff"
    stuff.mkdir()
    for image in content["images"]:
        h, w = image["height"], image["width"]
        labels = np.where(np.arange(h)[:, None] < h // 2, 1, 2).repeat(w, axis=1).astype(np.uint8)
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                rle = mask_util.merge(mask_util.frPyObjects(a["segmentation"], h, w))
                labels[mask_util.decode(rle).astype(bool)] = 0
        Image.fromarray(labels).save(stuff / image["file_name"].replace(".jpg", ".png"))
    metadata = dict(
        thing_classes=list(CLASS_NAMES),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(CLASS_NAMES))},
        stuff_classes=["things", "sky", "ground"],
        stuff_dataset_id_to_contiguous_id={0: 0, 101: 1, 102: 2},
    )
    register_coco_panoptic_separated(
        PANOPTIC, metadata, str(sample / "train"), "", "", str(stuff), str(json_file)
    )
    names = [f"{PANOPTIC}_separated", f"{PANOPTIC}_stuffonly"]
    yield names[0]
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def keypoints(sample, tmp_path_factory):
    """The sample data with 17 keypoints on each object, one after the other along its box."""
    folder = tmp_path_factory.mktemp("keypoints")
    shutil.copytree(sample, folder, dirs_exist_ok=True)
    for path in (folder / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for category in content["categories"]:
            category["keypoints"] = [*(f"{side}_{i}" for i in range(8) for side in "lr"), "nose"]
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            points = [(x + w * i / 16, y + h * i / 16, 2) for i in range(17)]
            a["keypoints"], a["num_keypoints"] = [v for p in points for v in p], 17
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS],
)
def test_it_trains_two_iterations_and_evaluates(name, sample, request, tmp_path):
    cfg = load_config(str(FOLDER / name), [*SMALL, "OUTPUT_DIR", str(tmp_path)])
    if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (request.getfixturevalue("panoptic"),)
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    else:
        kind = "keypoints" if cfg.MODEL.KEYPOINT_ON else "tiny"
        folders = {"train": f"rsb_{kind}_train", "val": f"rsb_{kind}_val"}
        if cfg.MODEL.KEYPOINT_ON:
            sample = request.getfixturevalue("keypoints")
        cfg.DATASETS.COCO_JSON = [
            [n, str(sample / "annotations" / f"{f}.json"), str(sample / f)]
            for f, n in folders.items()
        ]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (folders["train"],), (folders["val"],)
        register_coco_json(cfg)
    cfg.freeze()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainable = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.model.train()
    with EventStorage() as storage:
        trainer.storage = storage
        for trainer.iter in range(2):
            trainer.run_step()
            trainer.scheduler.step()
        assert np.isfinite(storage.latest()["total_loss"][0])
    # Freezing is as the config says: what is not frozen has moved, at least its decayed weights.
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, trainable[n])}
    decayed = {n for n, p in trainer.model.named_parameters() if p.requires_grad and p.ndim > 1}
    assert decayed <= moved
    assert all(p.requires_grad for n, p in trainer.model.named_parameters() if n in moved)

    results = Trainer.test(cfg, trainer.model)
    assert "AP" in results["bbox"]
    assert ("AP" in results.get("segm", {})) == cfg.MODEL.MASK_ON
    assert ("AP" in results.get("keypoints", {})) == cfg.MODEL.KEYPOINT_ON
    assert ("mIoU" in results.get("sem_seg", {})) == (cfg.MODEL.META_ARCHITECTURE == "PanopticFPN")


def test_each_config_starts_from_weights_of_its_architecture():
    for name in CONFIGS:
        cfg = load_config(str(FOLDER / name), [])
        if cfg.MODEL.WEIGHTS:
            expected = f"zoo://{name.removesuffix('.yaml')}", f"timm://{cfg.MODEL.TIMM.NAME}."
            assert cfg.MODEL.WEIGHTS.startswith(expected), name
