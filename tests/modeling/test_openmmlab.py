"""The published RetinaNet and Cascade Mask R-CNN compared with MMDetection's formulas."""

import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rsb_d2 import UserError
from tests.helpers.weights.openmmlab import Detector, build, make_targets

# ---- RetinaNet ----


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory, device):
    return Detector("retinanet", tmp_path_factory.mktemp("openmmlab"), device)


def test_boxes_are_clipped_before_nms(retinanet, device):
    # Half of each of the first two is outside an image of 100 x 100: their IoU is 0.43, and 0.6
    # after clipping. The third is outside completely.
    anchors = Boxes(
        torch.tensor([[-100.0, 10, 50, 60], [-20.0, 10, 50, 60], [-90.0, 0, -10, 20], [0, 0, 1, 1]])
    )
    scores = torch.zeros(4, 80)
    scores[:3, 7] = torch.tensor([0.9, 0.8, 0.7])
    none = [Boxes(torch.zeros(0, 4)), torch.zeros(0, 80), torch.zeros(0, 4)]
    arguments = [[anchors, none[0]], [scores, none[1]], [torch.zeros(4, 4), none[2]]]
    arguments = [[x.to(device) for x in pair] for pair in arguments] + [(100, 100)]
    found = retinanet.model.inference_single_image(*arguments)
    assert found.pred_boxes.tensor.tolist() == [[0, 10, 50, 60]]
    assert found.scores.tolist() == pytest.approx([0.9])
    stock = RetinaNet.inference_single_image(retinanet.model, *arguments)
    assert len(stock) == 3


# ---- Cascade R-CNN ----


@pytest.fixture(scope="module")
def cascade(tmp_path_factory, device):
    return Detector("cascade_mask_rcnn", tmp_path_factory.mktemp("openmmlab"), device)


@pytest.fixture
def training_cascade(cascade):
    heads = cascade.model.roi_heads
    heads.train()
    heads.batch_size_per_image = 64
    yield heads
    heads.eval()
    heads.batch_size_per_image = 512
    heads.stage_loss_weights = [1.0, 0.5, 0.25]
    heads.zero_grad()


def make_proposals(count=300, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, generator=generator) * torch.tensor([260.0, 200.0])
    boxes = torch.cat([corners, corners + 20 + 60 * torch.rand(count, 2, generator=generator)], 1)
    near = make_targets().gt_boxes.tensor.repeat(20, 1)
    near = near + 4 * torch.randn(near.shape, generator=generator)
    proposals = Instances((256, 320), proposal_boxes=Boxes(torch.cat([near, boxes])))
    proposals.objectness_logits = torch.zeros(len(proposals))
    return proposals.to(device)


def test_every_stage_of_the_cascade_samples_and_trains(
    cascade, training_cascade, monkeypatch, device
):
    heads, sampled = training_cascade, []
    original = heads.label_and_sample_proposals

    def record(proposals, targets):
        result = original(proposals, targets)
        sampled.append((heads.proposal_matcher.thresholds[1], proposals[0], result[0]))
        return result

    monkeypatch.setattr(heads, "label_and_sample_proposals", record)
    targets = make_targets(masks=True, device=device)
    with EventStorage() as storage:
        torch.manual_seed(0)
        _, losses = heads(
            cascade.images, cascade.features, [make_proposals(device=device)], [targets]
        )
    names = [
        f"{name}_stage{i}" for i in range(3) for name in ("loss_cls", "loss_box_reg", "loss_mask")
    ]
    assert sorted(losses) == sorted(names)
    assert [threshold for threshold, _, _ in sampled] == [0.5, 0.6, 0.7]
    assert "stage2/roi_head/num_fg_samples" in storage.latest()
    for stage, (_, given, result) in enumerate(sampled):
        positive = result.gt_classes < 80
        assert len(result) <= 64 and 0 < positive.sum() <= 16
        if stage:  # what the sampled ground truth became is dropped; 64 were sampled before
            assert 60 <= len(given) < 64
    sum(losses.values()).backward()
    for head in (*heads.mask_head, *heads.box_head, *heads.box_predictor):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())

    heads.stage_loss_weights = [2.0, 0.0, 1.0]
    with EventStorage():
        torch.manual_seed(0)
        _, weighted = heads(
            cascade.images, cascade.features, [make_proposals(device=device)], [targets]
        )
    for name, loss in losses.items():
        factor = {"0": 2, "1": 0, "2": 4}[name[-1]]  # published: 1, 0.5, 0.25
        assert weighted[name].item() == pytest.approx(factor * loss.item(), rel=1e-4)


def test_cascade_trains_on_an_image_without_objects(cascade, training_cascade, device):
    targets = make_targets(masks=True, device=device)[:0]
    with EventStorage():
        _, losses = training_cascade(
            cascade.images, cascade.features, [make_proposals(50, device)], [targets]
        )
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(losses[f"loss_mask_stage{i}"] == 0 for i in range(3))


def test_cascade_needs_a_weight_for_each_stage():
    with pytest.raises(UserError, match="STAGE_LOSS_WEIGHTS"):
        build("cascade_mask_rcnn", "MODEL.ROI_BOX_CASCADE_HEAD.STAGE_LOSS_WEIGHTS", [1.0, 0.5])
