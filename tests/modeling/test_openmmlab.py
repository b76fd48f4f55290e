"""Parts of the published RetinaNet and Cascade R-CNN that detections and losses do not show.

tests/checkpoint/test_openmmlab_detectors.py compares these with MMDetection's.
"""

import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rsb_d2 import UserError
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model
from tests.helpers.weights.openmmlab import make_targets
from tests.helpers.weights.standin_weights import make_image


def test_boxes_are_clipped_before_nms(device):
    model = make_seeded_model(make_seeded_config("retinanet", "MODEL.DEVICE", device))
    # Half of each of the first two is outside an image of 100 x 100: their IoU is 0.43, and 0.6
    # after clipping. The third is outside completely.
    anchors = Boxes(
        torch.tensor([[-100.0, 10, 50, 60], [-20.0, 10, 50, 60], [-90.0, 0, -10, 20], [0, 0, 1, 1]])
    )
    scores = torch.zeros(4, 6)
    scores[:3, 5] = torch.tensor([0.9, 0.8, 0.7])
    none = [Boxes(torch.zeros(0, 4)), torch.zeros(0, 6), torch.zeros(0, 4)]
    arguments = [[anchors, none[0]], [scores, none[1]], [torch.zeros(4, 4), none[2]]]
    arguments = [[x.to(device) for x in pair] for pair in arguments] + [(100, 100)]
    found = model.inference_single_image(*arguments)
    assert found.pred_boxes.tensor.tolist() == [[0, 10, 50, 60]]
    assert found.scores.tolist() == pytest.approx([0.9])
    stock = RetinaNet.inference_single_image(model, *arguments)
    assert len(stock) == 3


@pytest.fixture
def cascade(device):
    """ROI heads in training mode, with an image and its features."""
    model = make_seeded_model(make_seeded_config("cascade", "MODEL.DEVICE", device))
    images = model.preprocess_image([{"image": torch.as_tensor(make_image()).permute(2, 0, 1)}])
    with torch.no_grad():
        features = model.backbone(images.tensor)
    heads = model.roi_heads.train()
    heads.batch_size_per_image = 64
    for predictor in heads.box_predictor:  # so that no box becomes empty
        predictor.bbox_pred.weight.data *= 0.1
    return heads, images, features


def make_proposals(count=300, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([260.0, 200.0])
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(count, 2, generator=generator)], 1)
    near = make_targets().gt_boxes.tensor.repeat(20, 1)
    near = near + 4 * torch.randn(near.shape, generator=generator)
    proposals = Instances((256, 320), proposal_boxes=Boxes(torch.cat([near, boxes])))
    proposals.objectness_logits = torch.zeros(len(proposals))
    return proposals.to(device)


def test_every_stage_of_the_cascade_samples_and_trains(cascade, monkeypatch, device):
    (heads, *inputs), sampled = cascade, []
    original = heads.label_and_sample_proposals

    def record(proposals, targets):
        result = original(proposals, targets)
        sampled.append((heads.proposal_matcher.thresholds[1], proposals[0], result[0]))
        return result

    monkeypatch.setattr(heads, "label_and_sample_proposals", record)
    targets = make_targets(masks=True, device=device)
    with EventStorage() as storage:
        torch.manual_seed(0)
        _, losses = heads(*inputs, [make_proposals(device=device)], [targets])
    names = [
        f"{name}_stage{i}" for i in range(3) for name in ("loss_cls", "loss_box_reg", "loss_mask")
    ]
    assert sorted(losses) == sorted(names)
    assert [threshold for threshold, _, _ in sampled] == [0.5, 0.6, 0.7]
    assert "stage2/roi_head/num_fg_samples" in storage.latest()
    for stage, (_, given, result) in enumerate(sampled):
        positive = result.gt_classes < 6
        assert len(result) <= 64 and 0 < positive.sum() <= 16
        if stage:  # what the sampled ground truth became is dropped; 64 were sampled before
            assert 60 <= len(given) < 64
    sum(losses.values()).backward()
    for head in (*heads.mask_head, *heads.box_head, *heads.box_predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    heads.stage_loss_weights = [2.0, 0.0, 1.0]
    with EventStorage():
        torch.manual_seed(0)
        _, weighted = heads(*inputs, [make_proposals(device=device)], [targets])
    for name, loss in losses.items():
        factor = {"0": 2, "1": 0, "2": 4}[name[-1]]  # published: 1, 0.5, 0.25
        assert weighted[name].item() == pytest.approx(factor * loss.item(), rel=1e-4)


def test_cascade_trains_on_an_image_without_objects(cascade, device):
    heads, *inputs = cascade
    targets = make_targets(masks=True, device=device)[:0]
    with EventStorage():
        _, losses = heads(*inputs, [make_proposals(50, device)], [targets])
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(losses[f"loss_mask_stage{i}"] == 0 for i in range(3))


def test_cascade_needs_a_weight_for_each_stage():
    with pytest.raises(UserError, match="STAGE_LOSS_WEIGHTS"):
        opts = ["MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS", "[1.0, 0.5]"]
        make_seeded_model(make_seeded_config("cascade", *opts))
