"""A training with the validation loss takes the same steps as one without."""

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from rsb_d2.data.sample import make_sample_data
from tests.engine.test_own_data_training import ScriptedTrainer, make_config


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_the_weights_are_the_same(tmp_path, norm):
    make_sample_data(str(tmp_path / "sample"), num_train=4, num_val=2)
    weights = {}
    for val_loss in (False, True):
        cfg = make_config(
            *(tmp_path / "sample", "TEST.VAL_LOSS", str(val_loss), "MODEL.TIMM.NORM", norm),
            *("SOLVER.MAX_ITER", "3", "SOLVER.BEST_METRIC", ""),
            *("OUTPUT_DIR", str(tmp_path / f"run_{val_loss}")),
        )
        seed_all_rng(1)
        ScriptedTrainer.scores = [1.0, 2.0, 3.0]
        trainer = ScriptedTrainer(cfg)
        start = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        trainer.train()
        weights[val_loss] = trainer.model.state_dict()
    losses = (tmp_path / "run_True" / "metrics.json").read_text()
    assert losses.count("val_total_loss") >= 1
    assert "val_total_loss" not in (tmp_path / "run_False" / "metrics.json").read_text()
    assert any(not torch.equal(start[k], v) for k, v in weights[True].items())
    # Running statistics among them.
    assert all(torch.equal(weights[False][k], v) for k, v in weights[True].items())
