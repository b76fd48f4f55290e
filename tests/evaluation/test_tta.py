"""Test-time augmentation: Detectron2's, on the model and on the optimized one."""

import copy

import pytest
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA

from rsb_d2 import UserError, optimize_for_inference
from rsb_d2.evaluation.tta import check_tta, with_tta
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model
from tests.helpers.weights.standin_weights import make_image

SIZES = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)", "TEST.AUG.MAX_SIZE", "200")


def make_input():
    image = torch.as_tensor(make_image(96, 128).transpose(2, 0, 1).copy())
    return [{"image": image, "height": 192, "width": 256}]


@pytest.mark.parametrize("kind", ["faster", "mask", "cascade"])
def test_the_optimized_model_finds_the_same(kind, device):
    cfg = make_seeded_config(kind, *SIZES, "MODEL.DEVICE", device)
    model = make_seeded_model(cfg)
    with torch.no_grad():
        expected = GeneralizedRCNNWithTTA(cfg, copy.deepcopy(model))(make_input())[0]["instances"]
        single = model(make_input())[0]["instances"]
        optimized = with_tta(cfg, optimize_for_inference(model))
        found = optimized(make_input())[0]["instances"]
    assert len(expected) > 10
    assert expected.image_size == (192, 256)
    assert not torch.equal(expected.scores, single.scores)  # it does something
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-3, atol=0.05
    )
    if cfg.MODEL.MASK_ON:
        assert (found.pred_masks == expected.pred_masks).float().mean() > 0.999
    # As an evaluation leaves it: an optimized model cannot be put into training mode.
    assert not optimized.training and not optimized.eval().training


def test_the_model_keeps_its_mode():
    cfg = make_seeded_config("faster", *SIZES)
    model = make_seeded_model(cfg)
    assert not with_tta(cfg, model).training
    assert with_tta(cfg, model.train()).training


@pytest.mark.parametrize(
    "kind, opts, says",
    [
        ("retinanet", [], "MODEL.META_ARCHITECTURE is OpenMMLabRetinaNet"),
        ("mask", ["MODEL.META_ARCHITECTURE", "PanopticFPN"], "META_ARCHITECTURE is PanopticFPN"),
        ("faster", ["MODEL.META_ARCHITECTURE", "ProposalNetwork"], "is ProposalNetwork"),
        ("faster", ["MODEL.KEYPOINT_ON", "True"], "MODEL.KEYPOINT_ON is True"),
        ("faster", ["MODEL.LOAD_PROPOSALS", "True"], "MODEL.LOAD_PROPOSALS is True"),
        ("faster", ["TEST.AUG.MIN_SIZES", "()"], "TEST.AUG.MIN_SIZES is empty"),
    ],
)
def test_what_cannot_be_augmented_is_one_line(kind, opts, says):
    cfg = make_seeded_config(kind, *SIZES, *opts)
    with pytest.raises(UserError, match=says) as error:
        check_tta(cfg)
    assert "\n" not in str(error.value)
