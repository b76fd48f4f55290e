"""Each key of Detectron2's default config: honoured, not ours, or refused with a line."""

import types
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import default_setup

from rsb_d2 import UserError, add_rsb_config
from rsb_d2.checkpoint import check_architecture
from rsb_d2.modeling.resnets.spec import backbone_spec
from tests.helpers.recorded_config import keys_of
from tests.helpers.who_reads import stock_keys, who_reads

LISTS = yaml.safe_load((Path(__file__).parent / "detectron2_keys.yaml").read_text())
HONOURED = {key: part for part, keys in LISTS["honoured"].items() for key in keys}
REFUSED = [key for key, _, _ in LISTS["refused"]]
# Detectron2's main has these beside those of 0.6.
ONLY_IN_MAIN = {
    *("DATALOADER.REPEAT_SQRT", "SOLVER.BASE_LR_END", "SOLVER.NUM_DECAYS"),
    *("SOLVER.RESCALE_INTERVAL", "FLOAT32_PRECISION"),
    *("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"),
    *("MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER", "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES"),
}


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    before = torch.backends.cudnn.benchmark
    yield who_reads(tmp_path_factory.mktemp("keys"))
    torch.backends.cudnn.benchmark = before


def test_every_key_is_in_one_list():
    listed = [*HONOURED, *LISTS["read_elsewhere"], *LISTS["not_ours"]]
    assert len(listed) == len(set(listed))
    found = set(listed) | set(REFUSED)
    assert set(stock_keys()) <= found
    assert found - set(stock_keys()) <= ONLY_IN_MAIN
    # Values of a key that is honoured may be refused; another key must not be in both.
    assert not set(REFUSED) & {*LISTS["read_elsewhere"], *LISTS["not_ours"]}


def test_what_is_honoured_is_read_by_the_part_that_is_named(readers):
    not_read = {
        key: (part, sorted(readers[key]))
        for key, part in HONOURED.items()
        if key in readers and part not in readers[key]
    }
    assert not_read == {}


def test_what_is_not_ours_is_read_by_nobody(readers):
    """With one exception: a message of this project's says that it is not honoured."""
    by_others = {key: readers[key] for key in LISTS["not_ours"] if key in readers}
    of_message = {"rsb_d2.config.stock.follow", "rsb_d2.model_zoo.rsb_backbone"}
    assert not {key: by for key, by in by_others.items() if by - of_message}


def test_what_is_read_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.CUDNN_BENCHMARK = str(tmp_path), True
    precision = torch.get_float32_matmul_precision()
    if "FLOAT32_PRECISION" in cfg:
        cfg.FLOAT32_PRECISION = "high"
    default_setup(cfg, types.SimpleNamespace(opts=[], eval_only=False))
    assert torch.backends.cudnn.benchmark
    if "FLOAT32_PRECISION" in cfg:
        expected = "high" if torch.cuda.is_available() else precision  # of a GPU alone
        assert torch.get_float32_matmul_precision() == expected
        torch.set_float32_matmul_precision(precision)

    # An older file is brought up to date, by its version.
    path = tmp_path / "of_version_1.yaml"
    path.write_text("VERSION: 1\nMODEL: {WEIGHT: theirs.pth}\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.WEIGHTS == "theirs.pth"


@pytest.mark.parametrize("key, value, line", LISTS["refused"])
def test_what_is_refused(key, value, line):
    cfg = get_cfg()
    add_rsb_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    spec = backbone_spec(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=f"{key}.*{line}") as error:
        check_architecture(cfg.MODEL.WEIGHTS, spec.name)
        backbone_spec(cfg)
    assert "\n" not in str(error.value)


def test_every_key_of_this_project_leaves_the_stock_ones():
    ours = get_cfg()
    add_rsb_config(ours)
    assert set(stock_keys()) < set(keys_of(ours))
