"""Checkpoints that are saved and resumed, by this project and by Detectron2."""

import numpy as np
import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from rsb_d2 import Checkpointer, UserError
from tests.helpers.small_detector import make_config, make_detector
from tests.helpers.weights.weight_files import check_unchanged, state_of


class Counting:
    """Something to checkpoint."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_save_and_resume(tmp_path, device):
    detector = make_detector(device=device)
    Checkpointer(detector, str(tmp_path), run=Counting(rate=np.float64(0.5))).save("a", iteration=4)
    other, run = make_detector(seed=3, device=device), Counting()
    checkpointer = Checkpointer(other, str(tmp_path), run=run)
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "a.pth")
    assert checkpointer.resume_or_load("not looked at", resume=True) == {"iteration": 4}
    assert run.state == {"rate": 0.5}
    check_unchanged(other, state_of(detector))
    # Without --resume only the weights count.
    run.state = {}
    rest = checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=False)
    assert run.state == {} and set(rest) == {"iteration", "run"}
    # Detectron2's own checkpointer reads the file, too.
    stock = make_detector(seed=4, device=device)
    DetectionCheckpointer(stock).load(str(tmp_path / "a.pth"))
    check_unchanged(stock, state_of(detector))


def test_a_checkpoint_of_detectron2s_own_checkpointer_is_resumed(tmp_path, device):
    detector = make_detector(device=device)
    DetectionCheckpointer(detector, str(tmp_path), run=Counting(rate=1)).save("a", iteration=4)
    other, run = make_detector(seed=3, device=device), Counting()
    Checkpointer(other, str(tmp_path), run=run).resume_or_load("", resume=True)
    assert run.state == {"rate": 1}
    check_unchanged(other, state_of(detector))


def test_a_run_is_resumed_with_the_same_model_or_not_at_all(tmp_path):
    Checkpointer(make_detector(), str(tmp_path), run=Counting(step=1)).save("a")
    cfg = make_config()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    other, run = build_model(cfg), Counting()
    before = state_of(other)
    with pytest.raises(UserError, match="80 classes in the file, 3 here.*start a new OUTPUT_DIR"):
        Checkpointer(other, str(tmp_path), run=run).resume_or_load("", resume=True)
    check_unchanged(other, before)
    assert run.state == {}


def test_values_that_cannot_be_read_back_are_not_saved(tmp_path):
    checkpointer = Checkpointer(make_detector(), str(tmp_path), run=Counting(it=[Counting()]))
    with pytest.raises(
        UserError, match=r"run\.it\[0\] is a (tests\.checkpoint\.)?test_checkpointer\.Counting"
    ):
        checkpointer.save("a")
    assert list(tmp_path.iterdir()) == []
