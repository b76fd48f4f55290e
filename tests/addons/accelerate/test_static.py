"""The graph of fixed shapes detects what Detectron2 detects in the same batch."""

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import nms

from rsb_d2 import UserError, model_zoo, optimize_for_inference
from rsb_d2.addons.accelerate import static_detector
from rsb_d2.addons.accelerate.static import (
    _NUM_CANDIDATES,
    Chosen,
    pool,
    suppress,
    suppress_classes,
)
from rsb_d2.addons.workbench.sample.draw import draw_picture
from tests.helpers.models.optimized import make_detector
from tests.helpers.models.static import C4, NothingIsRead, check_equal, detect, make_batch
from tests.helpers.seeded_run import make_seeded_config
from tests.helpers.small_detector import make_config

ONE = [(90, 120)]
FOUR = [(100, 160), (33, 160), (100, 61), (70, 70)]
STOCK = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_MASK_HEAD.NAME"]
STOCK += ["MaskRCNNConvUpsampleHead"]
MANY = ["MODEL.RPN.POST_NMS_TOPK_TEST", "1000", "MODEL.RPN.PRE_NMS_TOPK_TEST", "1000"]


def thresholds(score, limit):
    keys = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.RETINANET.SCORE_THRESH_TEST")
    return [x for key in keys for x in (key, str(score))] + [
        "TEST.DETECTIONS_PER_IMAGE",
        str(limit),
    ]


KINDS = {
    "faster": ("faster", []),
    "mask": ("mask", []),
    "cascade": ("cascade", []),
    "stock cascade": ("cascade", STOCK),
    "retinanet": ("retinanet", []),
    "stock retinanet": ("retinanet", ["MODEL.META_ARCHITECTURE", "RetinaNet"]),
    "c4": ("mask", C4),
}


SOME = [
    k if k in ("mask", "stock cascade", "retinanet") else pytest.param(k, marks=pytest.mark.slow)
    for k in KINDS
]


@pytest.mark.parametrize("kind", SOME)
def test_detections_equal_detectron2s(kind):
    """More than K detections, some and none; the rest of the images is not zero."""
    name, opts = KINDS[kind]
    model = make_detector(name, *thresholds(0.2, 15), *opts)
    numbers = []
    for sizes, padded in [(ONE, (90, 120)), (FOUR, (100, 160)), (FOUR, (112, 201))]:
        images, true_sizes = make_batch(sizes, padded)
        outputs = static_detector(model, padded, len(sizes))(images, true_sizes)
        numbers += check_equal(detect(model, images, true_sizes), outputs)
        assert outputs["is_exact"].all()
    assert max(numbers) == 15
    # With the threshold between the best and the second best score: an image with one.
    scores = outputs["scores"].sort(descending=True).values.flatten().unique()
    heads = getattr(model, "roi_heads", None)
    for threshold, expected in [(float(scores[-2:].mean()), 1), (1.0, 0)]:
        for part in [model] if heads is None else heads.modules():
            if hasattr(part, "test_score_thresh"):
                part.test_score_thresh = threshold
        found = static_detector(model, padded, 4)(images, true_sizes)
        assert sum(check_equal(detect(model, images, true_sizes), found)) == expected


def check_exact(model, images, sizes):
    """The numbers of detections of the images for which the graph is exact, which are equal."""
    outputs = static_detector(model, tuple(images.shape[2:]), len(images))(images, sizes)
    expected, is_exact = detect(model, images, sizes), outputs["is_exact"]
    expected = [found for found, exact in zip(expected, is_exact) if exact]
    return check_equal(expected, {name: values[is_exact] for name, values in outputs.items()})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_with_as_many_candidates_as_detectron2s_defaults(kind):
    name, opts = KINDS[kind]
    model = make_detector(name, *thresholds(0.2, 100), *MANY, *opts)
    sizes = [(300, 420), (256, 256)]
    images, true_sizes = make_batch(sizes, (320, 448))
    assert min(check_exact(model, images, true_sizes)) >= 15


def train_briefly(model, num_images=8, iterations=30):
    """Fit a model to a few pictures, so that its detections are of their objects."""
    batch = []
    for i in range(num_images):
        picture, shapes = draw_picture(np.random.default_rng(i), 128)
        target = Instances(picture.shape[:2])
        polygons = [np.asarray(shape.polygon, float) for shape in shapes]
        boxes = [[*polygon.min(0), *polygon.max(0)] for polygon in polygons]
        target.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        target.gt_classes = torch.tensor([shape.class_index for shape in shapes])
        target.gt_masks = PolygonMasks([[polygon.flatten()] for polygon in polygons])
        image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
        batch.append({"image": image, "instances": target})
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    with torch.enable_grad(), EventStorage():
        for i in range(iterations):
            optimizer.zero_grad()
            sum(model(batch[i % 2 :: 2]).values()).backward()
            optimizer.step()
    return model.eval(), [record["image"] for record in batch]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask", "cascade", "retinanet"])
def test_trained_weights(kind):
    with torch.enable_grad():
        model = build_model(make_seeded_config(kind, *thresholds(0.01, 20)))
    model, pictures = train_briefly(model)
    images, sizes = static_detector(model, (128, 128), 8).stack(pictures)
    numbers = check_exact(model, images, sizes)
    assert len(numbers) >= 4 and max(numbers) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mask_rcnn_torchvision_v2", "retinanet_torchvision_v2"])
def test_torchvisions_parts(name):
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *thresholds(0.012, 30), "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["MODEL.RPN.POST_NMS_TOPK_TEST", "40", "MODEL.TIMM.NAME", "resnet18"])
    torch.manual_seed(0)
    model = build_model(cfg).eval().requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("cls_score.weight", "bbox_pred.weight")):
            parameter.normal_(0, 0.05)
    images, sizes = make_batch([(90, 150), (128, 60)], (128, 150))
    outputs = static_detector(model, (128, 150), 2)(images, sizes)
    assert min(check_equal(detect(model, images, sizes), outputs)) > 3


def test_uint8_float_and_the_padding_make_no_difference():
    model = make_detector("mask", *thresholds(0.2, 20))
    detector = static_detector(model, (100, 160), 4)
    batch = make_batch(FOUR, (100, 160))
    stacked = detector.stack([image[:, :h, :w] for image, (h, w) in zip(batch[0], FOUR)])
    assert torch.equal(stacked[0], make_batch(FOUR, (100, 160), fill=0)[0])
    expected = detector(*stacked)
    for images, sizes in (make_batch(FOUR, (100, 160)), make_batch(FOUR, (100, 160), fill=7)):
        for values in (images, images.float()):
            found = detector(values, sizes)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", ["mask", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_an_optimized_model(kind):
    model = make_detector(kind, *thresholds(0.2, 20))
    images, sizes = make_batch(FOUR, (100, 160))
    outputs = static_detector(optimize_for_inference(model), (100, 160), 4)(images, sizes)
    assert sum(check_equal(detect(model, images, sizes), outputs, score=1e-4)) > 20


# ---- NMS ----


def clusters(number, seed, num_clusters=3, spread=12.0):
    """Boxes (N, 4) around a few centers, in an order of scores."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.rand(num_clusters, 2, generator=rng) * 600
    centers = centers[torch.randint(num_clusters, (number,), generator=rng)]
    centers = centers + torch.randn(number, 2, generator=rng) * spread
    sides = 60 * (torch.randn(number, 2, generator=rng) * 0.25).exp()
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=1)


def is_kept(boxes, threshold):
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    kept[nms(boxes, torch.arange(len(boxes), 0, -1.0), threshold)] = True
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7])
def test_suppression_equals_torchvisions(threshold):
    boxes = torch.stack([clusters(500, seed) for seed in range(4)])
    is_valid = torch.rand(4, 500) < torch.tensor([1.0, 0.5, 0.01, 0.0])[:, None]
    keep, is_settled = suppress(boxes, is_valid, threshold)
    assert is_settled.all() and not keep[~is_valid].any()
    for i in range(4):
        assert torch.equal(keep[i, is_valid[i]], is_kept(boxes[i, is_valid[i]], threshold))


def test_an_overlap_that_is_the_threshold():
    """0.6 in float32 is more than 0.6, and torchvision compares in float64."""
    boxes = torch.tensor([[0.0, 0, 4, 1], [0, 0, 3, 0.8], [9, 9, 12, 10], [9, 9, 11, 10]])
    for threshold in (0.6, 0.6 + 1e-9, 0.6 + 1e-7, 2 / 3, 0.66666668):
        keep, _ = suppress(boxes[None], torch.ones(1, 4, dtype=torch.bool), threshold)
        assert torch.equal(keep[0], is_kept(boxes, threshold))


def test_a_chain_that_is_too_long_is_not_exact():
    """Each box overlaps the next one only, so that each round settles one more."""
    corner = torch.arange(100.0)[:, None] * torch.tensor([4.0, 0, 4, 0])
    boxes, is_valid = (corner + torch.tensor([0.0, 0, 10, 10]))[None], torch.ones(1, 100) > 0
    keep, is_settled = suppress(boxes, is_valid, 0.4)
    num = int(is_settled.sum())
    assert 10 < num < 30 and is_settled[0, :num].all()
    assert torch.equal(keep[0, :num], is_kept(boxes[0], 0.4)[:num])
    found = Chosen(boxes, torch.linspace(1, 0.5, 100)[None], torch.zeros(1, 100, dtype=torch.long))
    for limit, expected in [(5, True), (num // 2 - 1, True), (num, False), (200, False)]:
        is_exact = suppress_classes(found, 1, torch.tensor([100]), 0.4, limit)[1]
        assert is_exact.item() is expected


@pytest.mark.parametrize("number", [0, 1, 999, 1000, 1001, 1500])
@pytest.mark.parametrize("limit", [5, 2000])
def test_suppression_in_classes(number, limit):
    """Some coordinates are negative, and shifted classes overlap then."""
    torch.manual_seed(number)
    boxes = torch.cat([clusters(number, 0, 20, 200.0), torch.zeros(10, 4)])
    scores = torch.cat([torch.rand(number).sort(descending=True).values, torch.full((10,), -1.0)])
    scores = scores.where(scores >= 0, -torch.inf)
    classes = torch.randint(0, 7, (number + 10,))
    keep = batched_nms(boxes[:number], scores[:number], classes[:number], 0.5)[:limit]
    candidates = Chosen(boxes[None], scores[None], classes[None]).best(_NUM_CANDIDATES)
    found, is_exact = suppress_classes(candidates, 7, torch.tensor([number]), 0.5, limit)
    assert found.scores.shape == (1, limit)
    assert is_exact.item() == (number <= 1000 or limit == 5)
    if is_exact:
        assert found.is_valid.sum() == len(keep)
        assert torch.equal(found.boxes[found.is_valid], boxes[keep])
        assert torch.equal(found.classes[found.is_valid], classes[keep])


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_equals_the_stock_one(kind, ratio, dtype):
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    names = ["p2", "p3", "p4", "p5"]
    features = [torch.randn(2, 8, int(320 * s), int(256 * s)).to(dtype) for s in scales]
    features = [f.contiguous(memory_format=torch.channels_last) for f in features]
    pooler = ROIPooler(7, scales, ratio, kind)
    corner = torch.rand(2, 60, 2) * 300 - 20
    boxes = torch.cat([corner, corner + torch.exp(torch.rand(2, 60, 2) * 6)], dim=2)
    boxes[1, 0] = 5.0  # empty
    expected = pooler([f.float() for f in features], [Boxes(b) for b in boxes])
    assert torch.equal(expected, pool(pooler, dict(zip(names, features)), names, boxes))


# ---- fixed shapes ----


@pytest.mark.parametrize("kind", SOME)
def test_nothing_is_read_from_the_device(kind):
    name, opts = KINDS[kind]
    detector = static_detector(make_detector(name, *thresholds(0.2, 20), *opts), (100, 160), 4)
    batch = make_batch(FOUR, (100, 160))
    with NothingIsRead():
        detector(*batch)
    with pytest.raises(AssertionError), NothingIsRead():
        detect(detector.model, *batch)  # Detectron2 reads


@pytest.mark.parametrize(
    "kind", [k if k == "mask" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_torch_export_has_no_unbacked_symbol(kind):
    name, opts = KINDS[kind]
    model = make_detector(name, *thresholds(0.2, 20), *opts)
    detector, batch = static_detector(model, (100, 160), 4), make_batch(FOUR, (100, 160))
    program = torch.export.export(detector, batch)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            assert all(isinstance(side, int) for side in value.shape), node
    assert not program.range_constraints
    expected = detector(*batch)
    found = program.module()(*batch)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_copied_between_a_gpu_and_the_cpu(kind):
    """With tensors without values, which are on a GPU that need not be there."""
    name, opts = KINDS[kind]
    model = make_detector(name, *opts)
    with FakeTensorMode():
        for module in model.modules():
            for name, value in [*module._parameters.items(), *module._buffers.items()]:
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    if name in module._parameters:
                        fake = torch.nn.Parameter(fake, requires_grad=False)
                    setattr(module, name, fake)
        images = torch.empty(2, 3, 320, 448, dtype=torch.uint8, device="cuda")
        sizes = torch.empty(2, 2, dtype=torch.long, device="cuda")
        outputs = static_detector(model, (320, 448), 2)(images, sizes)
    assert all(values.device.type == "cuda" for values in outputs.values())
    assert outputs["boxes"].shape == (2, 100, 4)


# ---- mistakes ----


def test_parts_without_fixed_shapes_are_named():
    model = make_detector("faster")
    with pytest.raises(UserError, match=r"images of shape \(1, 3, 64, 96\), and not \(2, 3, 64,"):
        static_detector(model, (64, 96))(*make_batch([(64, 96)] * 2, (64, 96)))
    detector = static_detector(model, (64, 96), 2)
    with pytest.raises(UserError, match="the graph takes 2 images, and not 1"):
        detector.stack([torch.zeros(3, 9, 9)])
    with pytest.raises(UserError, match="an image of 65 x 9 is larger than the graph, .* 64 x 96"):
        detector.stack([torch.zeros(3, 9, 9), torch.zeros(3, 65, 9)])
    with pytest.raises(UserError, match="image_size is .*; write positive integers"):
        static_detector(model, (64, 9.5))
    with pytest.raises(UserError, match="batch_size is .*; write positive integers"):
        static_detector(model, (64, 96), 0)
    with pytest.raises(UserError, match="^Linear has no form with fixed shapes"):
        static_detector(torch.nn.Linear(1, 1), (64, 96))
    model.roi_heads.box_predictor.test_topk_per_image = -1
    with pytest.raises(UserError, match="TEST.DETECTIONS_PER_IMAGE is -1"):
        static_detector(model, (64, 96))
    cfg = make_config()
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIPool"
    with pytest.raises(UserError, match="^ROIPooler has no form with fixed shapes"):
        static_detector(build_model(cfg), (64, 96))
