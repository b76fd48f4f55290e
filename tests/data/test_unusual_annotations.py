"""Unusual annotations are dropped, mended or kept, are logged, and the rest is trained on."""

import logging
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from detectron2.data import DatasetCatalog

from rsb_d2 import Trainer
from rsb_d2.data import register_coco_json
from tests.helpers.data.bad_input import (
    HEIGHT,
    NAN,
    WIDTH,
    check_training_image,
    edited,
    make_little_config,
    opts,
    put,
)


class Kept(NamedTuple):
    """What is unusual, how it is made, how many of the 6 objects are left, and what is logged."""

    name: str
    make: Callable[[Path], Any]
    num_objects: int
    says: str

    def __str__(self):
        return self.name


def box(*values):
    return put("annotations", bbox=list(values))


def mask(*segmentation):
    return put("annotations", segmentation=list(segmentation))


GOES_ON = [
    Kept("spaces, unicode and gaps in the category ids", opts(), 6, ""),
    Kept("crowds", put("annotations", iscrowd=1), 5, ""),
    Kept("'ignore'", put("annotations", ignore=1), 5, "1 with 'ignore' made crowds"),
    Kept("box NaN", box(NAN, 1, 2, 3), 5, r"dropped 1 of 6 .*1 with a box that is not finite"),
    Kept("box of no width", box(5, 5, 0, 9), 5, r"1 with a box of no area \(ids: 1\)"),
    Kept("box partly outside", box(-5, -5, 20, 20), 6, "1 of 6 boxes reach beyond"),
    Kept("polygon of two points", mask([1, 1, 9, 9]), 6, "1 masks that cannot be used taken out"),
    Kept("polygon far away", mask([1, 1, 9, 1, 9, 1e8]), 6, "1 masks that cannot be used"),
    Kept(
        "RLE cut short",
        put("annotations", segmentation=dict(size=[HEIGHT, WIDTH], counts="04")),
        6,
        "1 masks that cannot be used",
    ),
    Kept(
        "no masks",
        lambda d: edited(lambda c: [a.pop("segmentation") for a in c["annotations"]] and None)(d),
        6,
        "",
    ),
    Kept("area NaN", put("annotations", area=NAN), 6, "1 'area' filled in"),
    Kept("keypoints of texts", put("annotations", keypoints=list("abc")), 6, "1 keypoints that"),
    Kept(
        "images without annotations",
        edited(lambda c: {**c, "annotations": c["annotations"][:2]}),
        2,
        "",
    ),
    Kept(
        "masks of which one is bad",
        lambda d: mask([1, 1, 9, 9])(d) or opts("MODEL.MASK_ON", "True")(d),
        5,
        "1 without a mask that can be used",
    ),
    Kept("fewer images than the batch", lambda d: opts("SOLVER.IMS_PER_BATCH", "9")(d), 6, ""),
]


@pytest.mark.parametrize("case", GOES_ON, ids=str)
def test_train_net_goes_on(case, little_data, caplog):
    caplog.set_level(logging.INFO, logger="rsb_d2")
    cfg = make_little_config(*(case.make(little_data) or []))
    register_coco_json(cfg)
    said = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("rsb_d2"))
    assert re.search(case.says, said) if case.says else not said
    records = DatasetCatalog.get("mine")
    objects = [a for r in records for a in r["annotations"] if not a.get("iscrowd", 0)]
    assert len(objects) == case.num_objects
    batches = iter(Trainer.build_train_loader(cfg))
    for _ in range(4):
        batch = next(batches)
        assert len(batch) == cfg.SOLVER.IMS_PER_BATCH
        for image in batch:
            check_training_image(image, cfg)
    assert "Skipped" not in caplog.text
