"""A run of train_net.py from weights in the hub's cache, and its backbone back in timm."""

import huggingface_hub
import pytest
import timm
import torch
from detectron2.engine import default_argument_parser

from rsb_d2 import Checkpointer, Trainer, UserError
from rsb_d2.addons.workbench.sample import make_sample_data
from rsb_d2.checkpoint.convert import convert_file
from rsb_d2.config.loading import load_config
from rsb_d2.config.setup import setup
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.paths import ROOT
from tests.helpers.runs.programs import call_train_net

CONFIG = str(ROOT / "configs" / "frcnn_rsb_1x.yaml")


def test_the_recipe_reaches_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    args = default_argument_parser().parse_args(["--config-file", CONFIG])
    with pytest.raises(UserError, match="timm://resnet50.a1_in1k is not in the cache"):
        setup(args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_recipe_trains_offline_and_its_backbone_goes_back_to_timm(tmp_path, monkeypatch):
    weights = make_weights("resnet50")
    file = add_to_cache(tmp_path / "hub", "resnet50.a1_in1k", weights)
    make_sample_data(str(tmp_path / "sample"), num_train=4, num_val=2)
    options = [
        *("DATASETS.COCO_JSON", "[['own', 'sample/annotations/train.json', 'sample/train']]"),
        *("DATASETS.TRAIN", "('own',)"),
        *("DATASETS.TEST", "()"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "4"),
        *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
        *("INPUT.MIN_SIZE_TRAIN", "(64,)"),
        *("DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.IMS_PER_BATCH", "2"),
        *("SOLVER.MAX_ITER", "2"),
        *("SOLVER.STEPS", "()"),
        *("SOLVER.WARMUP_ITERS", "0"),
        *("OUTPUT_DIR", str(tmp_path / "output")),
    ]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    call_train_net(tmp_path, "--config-file", CONFIG, *options)
    log = (tmp_path / "output" / "log.txt").read_text()
    assert "Weights from timm://resnet50.a1_in1k" in log and str(file) in log
    assert "loaded:  the complete backbone, 318 tensors" in log

    trained, exported = tmp_path / "output" / "model_final.pth", tmp_path / "r50.safetensors"
    convert_file(str(trained), str(exported), "timm")
    model = timm.create_model("resnet50", num_classes=0, checkpoint_path=str(exported)).eval()
    assert torch.equal(model.layer1[0].conv1.weight, weights["layer1.0.conv1.weight"])  # frozen
    assert not torch.equal(model.layer2[0].conv1.weight, weights["layer2.0.conv1.weight"])

    detector = Trainer.build_model(load_config(CONFIG, [*options, "MODEL.DEVICE", "cpu"])).eval()
    Checkpointer(detector).load(str(trained))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = detector.backbone.bottom_up(image)
        expected = model.forward_intermediates(image, intermediates_only=True)[1:]
    for found, feature in zip(features.values(), expected):
        torch.testing.assert_close(found, feature, rtol=1e-5, atol=1e-5)
