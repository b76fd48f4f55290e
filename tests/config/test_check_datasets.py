"""The data sets that DATASETS.TRAIN and DATASETS.TEST name."""

import pytest

from tests.helpers.data.bad_input import Case, check_stop, opts, remove

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
