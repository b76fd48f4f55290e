"""The switches of training: each learns what plain float32 does, and keeps its checkpoints."""

import copy
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import AMPTrainer as Detectron2AMPTrainer
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from rsb_d2 import TimmBackbone, Trainer, UserError
from rsb_d2.config.check_device import check_amp, check_compiler
from rsb_d2.config.loading import load_config
from rsb_d2.data import register_coco_json
from rsb_d2.data.sample import make_sample_data
from rsb_d2.engine.amp import AMPTrainer, amp_dtype, use_amp
from rsb_d2.engine.speed import prepare_for_training
from rsb_d2.model_zoo import get_config_file
from rsb_d2.modeling.fold_norm import (
    FoldedBatchNorm2d,
    FoldingConv2d,
    fold_norms_in_training,
    unfold_norms,
)

ITERATIONS = 50
# Of the total loss, relative to plain float32's: in each of the first so many iterations, and in
# the means of either half. A rounding decides sooner or later which proposal is drawn, and from
# there on the runs see other samples of one distribution.
FIRST = {"float32": (5, 0.001), "bfloat16": (1, 0.02)}
MEANS = {"float32": 0.05, "bfloat16": 0.1}

SMALL = [
    *("DATASETS.SAMPLE_DATA", "", "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "resnet10t"),
    *("MODEL.TIMM.NORM_EVAL", "True", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "30", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.BASE_LR", "5e-4"),
    *("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.WARMUP_ITERS", "0"),
    *("SOLVER.STEPS", "(1000,)"),
    *("TEST.EVAL_PERIOD", "0", "INPUT.MIN_SIZE_TRAIN", "(64,)", "DATASETS.TEST", "()"),
    *("SOLVER.CHECKPOINT_PERIOD", "1000", "INPUT.RANDOM_FLIP", "none"),
]
PLAIN = ["MODEL.CHANNELS_LAST", "False", "MODEL.TIMM.FOLD_NORM", "False"]


class SwitchedTrainer(Trainer):
    """With the switches, whether or not they are built into the trainer."""

    plain_optimizer = False

    def __init__(self, cfg):
        super().__init__(cfg)
        prepare_for_training(self.model, cfg)
        use_amp(self, cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        optimizer = super().build_optimizer(cfg, model)
        assert all(group["fused"] for group in optimizer.param_groups)
        if cls.plain_optimizer:
            for group in optimizer.param_groups:
                group["fused"] = group["foreach"] = False
        return optimizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("switches")
    make_sample_data(str(folder / "data"), num_train=8, num_val=2)
    yield folder
    for name in ("rsb_sample_train", "rsb_sample_val"):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog:
                catalog.remove(name)


def make_config(folder, *opts):
    data = [
        [f"rsb_sample_{s}", f"{folder}/data/annotations/{s}.json", f"{folder}/data/{s}"]
        for s in ("train", "val")
    ]
    cfg = load_config(get_config_file("frcnn_rsb_sample"), [*SMALL, *PLAIN, *opts])
    cfg.DATASETS.COCO_JSON = data
    cfg.OUTPUT_DIR = str(folder / "output")
    (folder / "output").mkdir(exist_ok=True)
    if "rsb_sample_train" not in DatasetCatalog:
        register_coco_json(cfg, eval_only=False)
    return cfg


def train(folder, *opts, plain_optimizer=False, resume=False):
    """The trainer after a run, and the total losses of its iterations."""
    cfg = make_config(folder, *opts)
    seed_all_rng(1)
    kind = type("T", (SwitchedTrainer,), {"plain_optimizer": plain_optimizer})
    trainer = kind(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer, np.array([v for v, _ in trainer.storage.history("total_loss").values()])


@pytest.fixture(scope="module")
def plain(folder):
    trainer, losses = train(folder, plain_optimizer=True)
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


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_loss_curve_is_that_of_plain_float32(folder, plain, switch):
    weights, expected = plain
    precision, opts = SWITCHES[switch]
    trainer, losses = train(folder, *opts)
    check_curve(losses, expected, precision)
    # The weights have the names, shapes and precision of a plain model's.
    assert {k: (v.shape, v.dtype) for k, v in trainer.model.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in weights.items()
    }
    build_model(make_config(folder)).load_state_dict(trainer.model.state_dict())


@pytest.mark.slow
def test_the_loss_curve_of_a_compiled_backbone(folder, plain):
    weights, expected = plain
    trainer, losses = train(folder, "MODEL.COMPILE", "True")
    check_curve(losses, expected, "float32")
    assert trainer.model.state_dict().keys() == weights.keys()
    build_model(make_config(folder)).load_state_dict(trainer.model.state_dict())


# --- compiled


def test_compiling_keeps_names_and_copies(folder):
    cfg = make_config(folder, "MODEL.COMPILE", "True")
    model = build_model(cfg)
    names = list(model.state_dict())
    prepare_for_training(model, cfg)
    assert model.backbone._compiled_call_impl is not None
    assert list(model.state_dict()) == names
    assert copy.deepcopy(model).backbone._compiled_call_impl is None


def test_a_missing_compiler_is_told_in_a_line(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    cfg = make_config(folder)
    check_compiler(cfg)
    cfg.MODEL.COMPILE = True
    with pytest.raises(UserError, match="MODEL.COMPILE needs a C\\+\\+ compiler"):
        prepare_for_training(build_model(cfg), cfg)


# --- mixed precision


def test_the_precision_of_auto(folder, monkeypatch):
    cfg = make_config(folder)
    cfg.SOLVER.AMP.ENABLED = True
    for name, dtype in [("bfloat16", torch.bfloat16), ("float16", torch.float16)]:
        cfg.SOLVER.AMP.DTYPE = name
        assert amp_dtype(cfg) is dtype
    cfg.SOLVER.AMP.DTYPE, cfg.MODEL.DEVICE = "auto", "cuda"
    for supported, dtype in [(True, torch.bfloat16), (False, torch.float16)]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **k: supported)  # noqa: B023
        assert amp_dtype(cfg) is dtype
        check_amp(cfg)
        assert cfg.SOLVER.AMP.ENABLED


@pytest.mark.parametrize("name, on", [("auto", False), ("float16", False), ("bfloat16", True)])
def test_on_the_cpu_only_bfloat16_by_name(folder, caplog, name, on):
    cfg = make_config(folder, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", name)
    with caplog.at_level(logging.WARNING, "rsb_d2"):
        check_amp(cfg)
    assert cfg.SOLVER.AMP.ENABLED == on
    assert ("off on the CPU" in caplog.text) == (not on)


def test_an_unknown_precision(folder):
    cfg = make_config(folder, "SOLVER.AMP.DTYPE", "bf16")
    with pytest.raises(UserError, match="'bf16'; write auto, bfloat16 or float16"):
        check_amp(cfg)


def test_amp_takes_over_the_trainer_as_it_is(folder):
    cfg = make_config(folder, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
    trainer = SwitchedTrainer(cfg)
    inner = trainer._trainer
    assert type(inner) is AMPTrainer and isinstance(inner, Detectron2AMPTrainer)
    assert inner.model is trainer.model and inner.optimizer is trainer.optimizer
    assert trainer.state_dict()["_trainer"]["grad_scaler"] == {}
    dtypes = set()
    trainer.model.backbone.fpn_output2.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    trainer.max_iter = 1
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")

    # What a trainer with another precision has saved is taken, too, and the other way round.
    state = trainer.state_dict()
    state["_trainer"]["grad_scaler"] = torch.amp.GradScaler("cpu", init_scale=8.0).state_dict()
    trainer.load_state_dict(state)
    half = AMPTrainer(inner, torch.float16)
    half.load_state_dict(state["_trainer"])
    assert half.grad_scaler.get_scale() == 8.0
    assert half.state_dict()["grad_scaler"]["scale"] == 8.0
    del state["_trainer"]["grad_scaler"]
    half.load_state_dict(state["_trainer"])
    assert half.grad_scaler.get_scale() == 8.0


# --- norms folded into the convolutions


def make_backbones(name, freeze_at=0, **kwargs):
    """The same backbone twice, the second one folded, with norms of other than starting values."""
    torch.manual_seed(0)
    plain = TimmBackbone(name, freeze_at=freeze_at, **kwargs).train()
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
    folded = copy.deepcopy(plain)
    return plain, folded, folded.fold_norms_in_training()


def run_backbone(backbone, x):
    features = backbone(x)
    sum((f * f).mean() for f in features.values()).backward()
    return features, {n: p.grad for n, p in backbone.named_parameters()}


@pytest.mark.parametrize(
    "name, number",
    [("resnet18", 20), ("resnet50", 53), ("resnext50_32x4d", 53), ("seresnet50", 53)],
)
def test_folded_norms_have_the_same_features_and_gradients(name, number):
    plain, folded, count = make_backbones(name)
    assert count == number
    x = torch.randn(1, 3, 64, 64)
    # In float64 the two ways differ by rounding alone.
    features, grads = run_backbone(plain.double(), x.double())
    folded_features, folded_grads = run_backbone(folded.double(), x.double())
    for f in features:
        torch.testing.assert_close(folded_features[f], features[f], rtol=1e-9, atol=1e-9)
    assert all(grad is not None for grad in grads.values())
    for n in grads:
        scale = grads[n].abs().max()
        torch.testing.assert_close(folded_grads[n], grads[n], rtol=0, atol=1e-9 * scale.item())


def test_architectures_whose_norms_are_of_another_kind_stay_as_they_are():
    for name in ("efficientnet_b0", "convnext_atto"):
        plain, folded, count = make_backbones(name)
        assert count == 0
        x = torch.randn(1, 3, 64, 64)
        assert all(torch.equal(a, b) for a, b in zip(plain(x).values(), folded(x).values()))


def test_norms_are_folded_in_training_alone():
    plain, folded, _ = make_backbones("resnet18", freeze_at=2)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():  # bit for bit
        assert all(torch.equal(a, b) for a, b in zip(plain(x).values(), folded(x).values()))
    plain.eval(), folded.eval()
    assert all(torch.equal(a, b) for a, b in zip(plain(x).values(), folded(x).values()))
    assert folded.state_dict().keys() == plain.state_dict().keys()
    assert {n for n, _ in folded.named_modules()} == {n for n, _ in plain.named_modules()}


def test_running_statistics_that_train_are_not_folded():
    plain, folded, _ = make_backbones("resnet18", norm_eval=False)
    x = torch.randn(2, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(plain(x).values(), folded(x).values()))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), folded.buffers()))


def test_a_copy_is_folded_within_itself():
    _, folded, _ = make_backbones("resnet18")
    clone = copy.deepcopy(folded)
    (norm,) = clone.body.conv1.norm_behind
    assert norm is clone.body.bn1 and norm.conv_before[0] is clone.body.conv1
    assert isinstance(clone.body.conv1, FoldingConv2d) and isinstance(norm, FoldedBatchNorm2d)


def test_folding_is_undone():
    plain, folded, _ = make_backbones("resnet18")
    unfold_norms(folded)
    kinds = [{n: type(m) for n, m in b.named_modules()} for b in (plain, folded)]
    assert kinds[0] == kinds[1]
    assert [vars(m).keys() for m in plain.modules()] == [vars(m).keys() for m in folded.modules()]
    x = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(plain(x).values(), folded(x).values()))


def test_a_convolution_that_is_used_twice_is_not_folded():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm1 = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.conv2, self.norm2 = torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)
            self.conv3, self.norm3 = torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)

        def forward(self, x):
            raw = self.conv1(x)
            x = self.norm1(raw) + raw
            feature = self.conv2(x)
            return [feature, self.norm3(self.conv3(self.norm2(feature)))]

    net = Net()
    assert fold_norms_in_training(net) == 1
    assert isinstance(net.conv3, FoldingConv2d) and type(net.conv1) is type(net.conv2)
    # One with a bias, too.
    x = torch.randn(1, 3, 16, 16)
    for norm in (net.norm1, net.norm2, net.norm3):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.eval()
    with torch.no_grad():
        expected = net(x)
    torch.testing.assert_close(net(x), expected)


def saved_bytes(call):
    """Bytes of the tensors that autograd keeps for the backward pass, weights left out."""
    storages = {}

    def pack(tensor):
        if not tensor.is_leaf or not tensor.requires_grad:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = call()
    return sum(storages.values()), output


def test_folding_halves_what_is_kept_for_the_backward_pass():
    plain, folded, _ = make_backbones("resnet18")
    x = torch.randn(2, 3, 256, 256)
    kept, _ = saved_bytes(lambda: plain(x))
    kept_folded, _ = saved_bytes(lambda: folded(x))
    weights = 4 * sum(p.numel() for p in folded.parameters())  # the folded ones are kept
    assert kept_folded - weights < 0.65 * kept


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_frozen_stages_build_no_graph(norm):
    torch.manual_seed(0)
    backbone = TimmBackbone("resnet18", freeze_at=5, norm=norm).train()
    kept, features = saved_bytes(lambda: backbone(torch.randn(1, 3, 64, 64)))
    assert kept == 0 and not any(f.requires_grad for f in features.values())
    backbone = TimmBackbone("resnet18", freeze_at=2, norm=norm).train()
    features = backbone(torch.randn(1, 3, 64, 64))
    assert [f.requires_grad for f in features.values()] == [False, True, True, True]


# --- channels-last


def test_every_convolution_gets_its_input_channels_last(folder):
    cfg = make_config(folder, "MODEL.CHANNELS_LAST", "True", "MODEL.TIMM.NAME", "resnet18")
    detector = Trainer.build_model(cfg).eval()
    prepare_for_training(detector, cfg)
    seen = {}

    def note(name):
        def hook(module, inputs):
            seen[name] = inputs[0].is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, module in detector.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(note(name))
    image = (torch.rand(3, 64, 96) * 255).to(torch.uint8)
    with torch.no_grad():
        detector([{"image": image}])
    backbone = {n: ok for n, ok in seen.items() if n.startswith("backbone.")}
    first = "backbone.bottom_up.body.conv1"  # of three channels, which costs next to nothing
    assert len(backbone) > 20 and [n for n, ok in backbone.items() if not ok] in ([], [first])
