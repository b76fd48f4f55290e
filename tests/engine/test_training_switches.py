"""The switches of training learn like plain float32 and keep the names of weights."""

import copy

import numpy as np
import pytest
from detectron2.modeling import build_model

from rsb_d2 import UserError
from rsb_d2.engine.trainer import prepare_for_training
from tests.helpers.runs.switched_training import ITERATIONS, make_config, train

# Of the total loss, relative to plain float32's: in each of the first so many iterations, and in
# the means of either half. A rounding decides sooner or later which proposal is drawn, and from
# there on the runs see other samples of one distribution.
FIRST = {"float32": (5, 0.001), "bfloat16": (1, 0.02)}
MEANS = {"float32": 0.05, "bfloat16": 0.1}


@pytest.fixture(scope="module")
def plain(switch_folder, device):
    trainer, losses = train(switch_folder, "MODEL.DEVICE", device, plain_optimizer=True)
    assert (
        len(losses) == ITERATIONS and losses[-20:].mean() < 0.95 * losses[:20].mean()
    )  # it learns
    return trainer.model.state_dict(), losses


SWITCHES = {
    "fused AdamW": ("float32", []),
    "channels-last": ("float32", ["MODEL.CHANNELS_LAST", "True"]),
    "folded norms": ("float32", ["MODEL.TIMM.FOLD_NORM", "True"]),
    "bfloat16": ("bfloat16", ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]),
    "all of them": (
        "bfloat16",
        [
            *("MODEL.CHANNELS_LAST", "True", "MODEL.TIMM.FOLD_NORM", "True"),
            *("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"),
        ],
    ),
}


def check_curve(losses, expected, precision):
    number, tolerance = FIRST[precision]
    np.testing.assert_allclose(losses[:number], expected[:number], rtol=tolerance)
    means, expected_means = (v.reshape(2, -1).mean(axis=1) for v in (losses, expected))
    np.testing.assert_allclose(means, expected_means, rtol=MEANS[precision])


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
def test_the_loss_curve_equals_that_of_plain_float32(switch_folder, plain, switch, device):
    weights, expected = plain
    precision, opts = SWITCHES[switch]
    trainer, losses = train(switch_folder, "MODEL.DEVICE", device, *opts)
    check_curve(losses, expected, precision)
    # The weights have the names, shapes and precision of a plain model's.
    assert {k: (v.shape, v.dtype) for k, v in trainer.model.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in weights.items()
    }
    build_model(make_config(switch_folder)).load_state_dict(trainer.model.state_dict())


@pytest.mark.slow
def test_the_loss_curve_of_a_compiled_backbone(switch_folder, plain, device):
    weights, expected = plain
    trainer, losses = train(switch_folder, "MODEL.DEVICE", device, "MODEL.COMPILE", "True")
    check_curve(losses, expected, "float32")
    assert trainer.model.state_dict().keys() == weights.keys()
    build_model(make_config(switch_folder)).load_state_dict(trainer.model.state_dict())


def test_compiling_keeps_names_and_copies(switch_folder):
    cfg = make_config(switch_folder, "MODEL.COMPILE", "True")
    model = build_model(cfg)
    names = list(model.state_dict())
    prepare_for_training(model, cfg)
    assert model.backbone._compiled_call_impl is not None
    assert list(model.state_dict()) == names
    assert copy.deepcopy(model).backbone._compiled_call_impl is None


def test_a_missing_compiler_is_one_line(switch_folder, monkeypatch):
    monkeypatch.setenv("PATH", str(switch_folder))
    cfg = make_config(switch_folder)
    prepare_for_training(build_model(cfg), cfg)
    cfg.MODEL.COMPILE = True
    with pytest.raises(UserError, match="MODEL.COMPILE needs a C\\+\\+ compiler"):
        prepare_for_training(build_model(cfg), cfg)
