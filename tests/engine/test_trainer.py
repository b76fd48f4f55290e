"""What the trainer builds beyond the stock one."""

import pytest
import torch

from rsb_d2 import Trainer
from rsb_d2.config.loading import load_config
from tests.helpers.paths import CONFIGS

CONFIG = str(CONFIGS / "frcnn_rsb_sample.yaml")
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet18", "MODEL.WEIGHTS", ""]


@pytest.mark.parametrize("training", [False, True])
def test_channels_last_computes_the_same(training):
    cfg = load_config(CONFIG, SMALL)
    models = []
    for cfg.MODEL.CHANNELS_LAST in (False, True):
        torch.manual_seed(0)
        models.append(Trainer.build_model(cfg).train(training))
    plain, channels_last = models
    weight = channels_last.backbone.bottom_up.body.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected, found = plain.backbone(images), channels_last.backbone(images)
    for level in expected:
        torch.testing.assert_close(found[level], expected[level], rtol=1e-3, atol=1e-5)
