"""What the trainer builds beyond the stock one, and what stops it: no number, no disk."""

import re
import subprocess

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler

from rsb_d2 import Trainer, UserError
from rsb_d2.addons.accelerate.roi_align import ChannelsLastROIPooler
from rsb_d2.checkpoint import find_newest_complete
from rsb_d2.config.loading import load_config
from tests.helpers.devices import tolerance
from tests.helpers.paths import CONFIGS
from tests.helpers.runs.resumable_run import load, make_config, train

CONFIG = str(CONFIGS / "frcnn_rsb_sample.yaml")
PLAIN = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet18", "MODEL.WEIGHTS", ""]


@pytest.mark.parametrize("training", [False, True])
def test_channels_last_computes_the_same(training, device):
    cfg = load_config(CONFIG, [*PLAIN, "MODEL.DEVICE", device])
    models = []
    for cfg.MODEL.CHANNELS_LAST in (False, True):
        torch.manual_seed(0)
        models.append(Trainer.build_model(cfg).train(training))
    plain, channels_last = models
    weight = channels_last.backbone.bottom_up.body.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    poolers = [type(m.roi_heads.box_pooler) for m in models]
    assert poolers == [ROIPooler, ChannelsLastROIPooler if device == "cpu" else ROIPooler]
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(device)
    expected, found = plain.backbone(images), channels_last.backbone(images)
    for level in expected:
        atol = tolerance(device)["atol"]
        torch.testing.assert_close(found[level], expected[level], rtol=1e-3, atol=atol)


def test_a_loss_that_is_no_number_stops_the_run(run_folder, tmp_path, device):
    class Trained(Trainer):
        def run_step(self):
            if self.iter == 3:
                self.model.roi_heads.box_predictor.cls_score.bias.data.fill_(float("nan"))
            super().run_step()

    output = ["OUTPUT_DIR", str(tmp_path), "SOLVER.CHECKPOINT_PERIOD", "2", "MODEL.DEVICE", device]
    trainer = Trained(make_config(run_folder, "SOLVER.MAX_ITER", "6", *output))
    trainer.resume_or_load(resume=False)
    with pytest.raises(UserError) as e:
        trainer.train()
    message = str(e.value)
    assert "\n" not in message
    assert "iteration 3: the loss is not finite" in message
    assert re.search(r"loss_cls nan, loss_box_reg \d", message)
    assert len(re.findall(r"rsb_sample/train/\d+\.jpg", message)) == 2
    assert message.count("model_0000001.pth") == 1
    assert find_newest_complete(str(tmp_path)) == str(tmp_path / "model_0000001.pth")
    weights = load(tmp_path / "model_0000001.pth")["model"]
    assert all(w.isfinite().all() for w in weights.values())


def test_a_run_that_diverges_stops_in_a_line(run_folder, tmp_path, device):
    opts = ["SOLVER.MAX_ITER", "30", "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", "1e30"]
    opts += ["MODEL.DEVICE", device]
    with pytest.raises(UserError, match=r"iteration \d+: .*(finite|diverged).*SOLVER.BASE_LR"):
        train(make_config(run_folder, *opts))


def test_a_full_disk_stops_the_run_in_a_line(run_folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=250m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        opts = ["SOLVER.MAX_ITER", "30", "SOLVER.CHECKPOINT_PERIOD", "1", "OUTPUT_DIR", str(disk)]
        opts += ["SOLVER.OPTIMIZER", "SGD"]
        with pytest.raises(UserError, match="No space left on device") as e:
            train(make_config(run_folder, *opts))
        assert "\n" not in str(e.value)
        complete = find_newest_complete(str(disk))
        assert load(complete)["iteration"] == int(complete[-11:-4])
        assert not list(disk.glob("*.tmp"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
