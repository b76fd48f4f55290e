"""The data sets that DATASETS.TRAIN and DATASETS.TEST name."""

import pytest
from detectron2.data.datasets import register_coco_instances

from rsb_d2 import UserError
from rsb_d2.config.check_datasets import check_other_datasets
from tests.helpers.data.bad_input import Case, check_stop, make_little_config, opts, remove

STOPS = [
    Case("train set unknown", opts("DATASETS.TRAIN", "('mone',)"), "'mone'; did you mean mine"),
    Case(
        "test set unknown", opts("DATASETS.TEST", "('min_val',)"), "TEST: .*did you mean mine_val"
    ),
    Case("test set missing on disk", remove("val.json"), "mine_val: .*no such annotation file"),
    Case(
        "test set of Detectron2's, missing on disk",
        opts("DATASETS.TEST", "('coco_2017_val',)"),
        "coco_2017_val has its annotation file at",
    ),
    Case("no train set", opts("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


def test_an_image_folder_may_be_a_path(little_data):
    register_coco_instances("by path", {}, str(little_data / "val.json"), little_data / "val")
    cfg = make_little_config("DATASETS.TRAIN", "()", "DATASETS.TEST", "('by path',)")
    check_other_datasets(cfg, eval_only=True)
    (little_data / "val").rename(little_data / "moved")
    with pytest.raises(UserError, match="by path has its image folder at"):
        check_other_datasets(cfg, eval_only=True)
