"""MODEL.WEIGHTS that are not there, or cannot be used."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from rsb_d2 import Checkpointer, UserError
from tests.helpers.data.bad_input import Case, check_stop, opts
from tests.helpers.seeded_run import make_seeded_config
from tests.helpers.weights.bad_weights import (
    save_cut,
    save_html,
    save_malicious,
    save_malicious_torch,
    save_other_architecture,
)

STOPS = [
    Case("weights missing", opts("MODEL.WEIGHTS", "no.pth"), "MODEL.WEIGHTS: there is no file no"),
    Case("weights a folder", opts("MODEL.WEIGHTS", "train"), "train is a folder: name the"),
]


@pytest.mark.parametrize("case", STOPS, ids=str)
def test_train_net_stops_at_once(case, little_data, train_net):
    check_stop(case, little_data, train_net)


BAD_WEIGHTS = {
    "of zero bytes": (Path.touch, "is empty .0 bytes"),
    "of HTML": (save_html, "is a web page .HTML"),
    "cut short": (save_cut, "cut off or damaged"),
    "malicious": (save_malicious, "was not read: .*system"),
    "malicious, of torch": (save_malicious_torch, "was not read: .*system"),
    "of another architecture": (save_other_architecture, "bad.pth"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_train_net_with_bad_weights(kind, little_data):
    save, says = BAD_WEIGHTS[kind]
    save(little_data / "bad.pth")
    checkpointer = Checkpointer(build_model(make_seeded_config("faster")))
    before = {k: v.clone() for k, v in checkpointer.model.state_dict().items()}
    with pytest.raises(UserError, match=says) as e:
        checkpointer.resume_or_load("bad.pth", resume=False)  # as train_net.py does
    assert "Traceback" not in str(e.value) and len(str(e.value).splitlines()) <= 3
    assert all(torch.equal(before[k], v) for k, v in checkpointer.model.state_dict().items())
    assert not (little_data / "ran").exists()
