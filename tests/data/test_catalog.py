"""A data set's name that nobody has registered: one line with the likeliest names."""

import pytest
from detectron2.data import DatasetCatalog

from rsb_d2 import Trainer, UserError
from rsb_d2.addons.workbench.report.source import open_registered
from rsb_d2.data.datasets import registered
from rsb_d2.data.loader import evaluated_records
from rsb_d2.evaluation import build_evaluator
from rsb_d2.pretraining.data import build_test_loader
from tests.helpers.catalogs import catalogs_kept
from tests.helpers.runs.scripted_training import make_config


@pytest.fixture
def cfg(sample_data):
    with catalogs_kept():
        cfg = make_config(sample_data)
        DatasetCatalog.register("mine", list)
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("mien",)
        yield cfg


def train_loader(cfg):
    return Trainer.build_train_loader(cfg)


PROPOSALS = [
    *("MODEL.LOAD_PROPOSALS", True, "DATASETS.PROPOSAL_FILES_TRAIN", ("p.pkl",)),
    *("DATASETS.PROPOSAL_FILES_TEST", ("p.pkl",)),
]
CLASSIFIER = ["MODEL.META_ARCHITECTURE", "ImageClassifier"]


@pytest.mark.parametrize(
    "look_up, opts",
    [
        (lambda cfg: registered("mien"), []),
        (train_loader, []),
        (lambda cfg: Trainer.build_test_loader(cfg, "mien"), []),
        (Trainer, []),
        (lambda cfg: build_evaluator(cfg, "mien"), []),
        (lambda cfg: build_test_loader(cfg, "mien"), []),
        (lambda cfg: open_registered(cfg, "mien"), []),
        (train_loader, PROPOSALS),
        (lambda cfg: evaluated_records(cfg, "mien"), PROPOSALS),
        (train_loader, CLASSIFIER),
        (lambda cfg: Trainer.build_test_loader(cfg, "mien"), CLASSIFIER),
    ],
)
def test_a_misspelled_name(cfg, look_up, opts):
    cfg.merge_from_list(opts)
    with pytest.raises(UserError, match="no data set is registered as 'mien'; .*mine") as e:
        look_up(cfg)
    assert "\n" not in str(e.value)


def test_a_name_like_no_other_gets_those_registered_last(cfg):
    with pytest.raises(UserError, match="registered are mine, ") as e:
        registered("?")
    assert len(str(e.value)) < 500
