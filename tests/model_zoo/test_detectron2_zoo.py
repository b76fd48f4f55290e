"""Every YAML of Detectron2's zoo on an RSB backbone, and the stock model of the same file."""

import functools

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from rsb_d2 import Checkpointer, UserError
from rsb_d2.checkpoint.formats import resnet_to_detectron2
from rsb_d2.config.loading import load_config
from rsb_d2.model_zoo import with_rsb_backbone
from rsb_d2.solver import build_optimizer
from tests.helpers.fake_hub import add_to_cache, make_weights
from tests.helpers.zoo_model import NAMES, ROOT, make_inputs, small_config

# What timm cannot be, and the beginning of the line that says so.
DEFORMABLE = "MODEL.RESNETS.DEFORM_ON_PER_STAGE: [False, True, True, True]: timm's ResNets have no"
GROUP_NORM = "MODEL.RESNETS.NORM: 'GN' cannot be made of the batch norm that timm's resnet50"
REFUSED = {
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv.yaml": DEFORMABLE,
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml": DEFORMABLE,
    "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml": DEFORMABLE,
    "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x.yaml": DEFORMABLE,
    "Misc/mask_rcnn_R_50_FPN_3x_gn.yaml": GROUP_NORM,
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml": GROUP_NORM,
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_gn.yaml": GROUP_NORM,
}
BUILT = [name for name in NAMES if name not in REFUSED]
# One of each kind; all of them are slow tests. Masks on C4 are trained in test_zoo_training.py,
# keypoints in tests/programs/test_datasets.py, and DC5 is in tests/modeling/test_c4_and_dc5.py.
QUICK = [
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-Detection/rpn_R_50_C4_1x.yaml",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A hub's cache folder, and what is in it."""
    return tmp_path_factory.mktemp("hub"), {}


@pytest.fixture
def hub(cache, monkeypatch, tmp_path):
    """Puts seeded weights of a timm:// path into the cache; returns these."""
    folder, weights = cache
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def add(path):
        name = path[len("timm://") :]
        if name not in weights:
            weights.clear()  # those of one architecture at a time
            weights[name] = make_weights(name)
            if not (folder / f"models--timm--{name}").exists():
                add_to_cache(folder, name, weights[name])
        return weights[name]

    return add


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_name_gives_the_same_config_or_error(name):
    cfg = small_config(name)
    stock = cfg.clone()
    try:
        with_rsb_backbone(cfg, recipe=False)
        refused = ""
    except UserError as e:
        refused = str(e)
    assert refused.startswith(REFUSED.get(name, "")) and bool(refused) == (name in REFUSED)
    assert "\n" not in refused
    try:
        followed = load_config(str(ROOT / name), ["MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME])
    except UserError as e:
        assert str(e) == refused
        return
    assert not refused
    assert followed.MODEL.TIMM == cfg.MODEL.TIMM
    for key in set(CHANGED) - {"MODEL.WEIGHTS", "MODEL.RESNETS.STRIDE_IN_1X1"}:
        assert value_of(followed, key) == value_of(cfg, key)
    # What is not of the backbone and its weights is untouched.
    for key in CHANGED:
        cfg.merge_from_list([key, value_of(stock, key)])
    assert_same(cfg, stock)


CHANGED = [
    *("MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME", "MODEL.RESNETS.STRIDE_IN_1X1"),
    *("MODEL.WEIGHTS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
]


def value_of(cfg, key):
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)


def assert_same(node, stock):
    """Every key of the stock config has its value; this project's own are added to it."""
    for key, value in stock.items():
        if isinstance(value, type(stock)):
            assert_same(node[key], value)
        else:
            assert node[key] == value, key


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BUILT],
)
def test_the_stock_model_on_timm(name, hub):
    cfg = small_config(name)
    stock_cfg = cfg.clone()
    with_rsb_backbone(cfg)
    weights = hub(cfg.MODEL.WEIGHTS or "timm://resnet50.a1_in1k")
    torch.manual_seed(0)
    model, stock = build_model(cfg), build_model(stock_cfg)

    # The same tensors by the same names, of which the same train; and features of the same shape.
    assert describe(model) == describe(stock)
    shapes = [m.backbone.output_shape() for m in (model, stock)]
    assert shapes[0] == shapes[1]

    # All of timm's weights that there is a place for, without a report of anything left out.
    checkpointer = Checkpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS or "timm://resnet50.a1_in1k")
    loaded = {in_timm(n): t for n, t in model.state_dict().items() if in_timm(n)}
    assert loaded and all(torch.equal(t, weights[n]) for n, t in loaded.items())
    assert not any(in_timm(n) for n in checkpointer.report.initial)

    model.eval()
    with torch.no_grad():
        outputs = model(make_inputs(cfg, training=False))
    assert len(outputs) == 2
    kinds = {"instances", "proposals", "sem_seg", "panoptic_seg"}
    assert all(set(output) & kinds for output in outputs)
    train_one_step(cfg, model)


def in_timm(name):
    """timm's name of a tensor of a model, or None."""
    _, found, rest = name.partition(".body.")
    return rest if found else None


def describe(model):
    """Of each tensor, by Detectron2's names: its shape and whether it trains."""
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    found = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        timm_name, start = in_timm(name), name.partition(".body.")[0]
        stock_name = name
        if timm_name:
            (stock_name,) = resnet_to_detectron2({timm_name: None})
            if start == "roi_heads.res5":
                stock_name = stock_name.removeprefix("res5.")
            stock_name = f"{start}.{stock_name}"
        found[stock_name] = (tuple(tensor.shape), name in trained)
    return found


def train_one_step(cfg, model):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    statistics = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    optimizer = build_optimizer(cfg, model.train())
    with EventStorage():
        loss = sum(model(make_inputs(cfg)).values())
    assert torch.isfinite(loss)
    loss.backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    backbone = {n for n in before if in_timm(n)}
    trained = {n for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    assert trained & backbone <= moved
    assert not [n for n in moved if not model.get_parameter(n).requires_grad]
    # Statistics are learned where Detectron2's norm does so, and nowhere else.
    norms = [m for n, m in model.named_modules() if in_timm(n) and is_norm(m)]
    learned = cfg.MODEL.RESNETS.NORM in ("BN", "SyncBN")
    assert all(isinstance(m, FrozenBatchNorm2d) for m in norms) != learned
    changed = {
        n for n, b in model.named_buffers() if n in statistics and not torch.equal(b, statistics[n])
    }
    assert {n for n in changed if in_timm(n)} == {
        f"{n}.running_mean"
        for n, m in model.named_modules()
        if learned and in_timm(n) and is_norm(m) and m.weight.requires_grad
    }


def is_norm(module):
    return isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d))
