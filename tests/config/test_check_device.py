"""MODEL.DEVICE and SOLVER.AMP.DTYPE: what this machine can do."""

import logging

import pytest

from rsb_d2 import UserError
from rsb_d2.config.check_device import check_amp
from tests.helpers.data.bad_input import Case, check_stop, opts
from tests.helpers.runs.switched_training import make_config

STOPS = [
    Case("device unknown", opts("MODEL.DEVICE", "gpu"), "DEVICE is 'gpu'; write cpu or cuda"),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


@pytest.mark.parametrize("name, on", [("auto", False), ("float16", False), ("bfloat16", True)])
def test_on_the_cpu_only_bfloat16_by_name(switch_folder, caplog, name, on):
    cfg = make_config(switch_folder, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", name)
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        check_amp(cfg)
    assert cfg.SOLVER.AMP.ENABLED == on
    assert ("off on the CPU" in caplog.text) == (not on)


def test_an_unknown_precision(switch_folder):
    cfg = make_config(switch_folder, "SOLVER.AMP.DTYPE", "bf16")
    with pytest.raises(UserError, match="'bf16'; write auto, native, bfloat16 or float16"):
        check_amp(cfg)
