"""MODEL.CUDA_GRAPHS: a training with recorded parts equals one without.

On the CPU by torch's own function on simulated graphs, on a GPU, if there is one, by real ones.
"""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from rsb_d2.engine import cuda_graphs
from rsb_d2.engine.cuda_graphs import RecordedPart, check_cuda_graphs
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.model_zoo import get_config_file
from tests.engine.test_train_step import (
    NO_SAMPLING,
    gradients,
    make_detection_batches,
    make_trainer,
    step,
)
from tests.helpers.devices import tolerance
from tests.helpers.models.simulated_graphs import SimulatedGraphs
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model

SIZES = [[(64, 96), (50, 70)], [(96, 64), (90, 60)]]
ORDER = [0, 1, 0, 1, 1, 0]  # of the sizes; each is recorded when it comes again
TRAINED_NORMS = ["MODEL.TIMM.NORM_EVAL", "False", "MODEL.BACKBONE.FREEZE_AT", "0"]
# By name: the detector, its config, arguments of the trainer, replays of each graph.
RUNS = {
    "trained norms": ("faster", TRAINED_NORMS, {}, 2),
    "folded norms": ("faster", ["MODEL.CHANNELS_LAST", "True"], {}, 2),
    "bfloat16": ("faster", [], {"amp_dtype": torch.bfloat16}, 2),
    "parts of a batch": ("retinanet", [], {"num_parts": 2}, 5),
}


@pytest.fixture
def simulated(device, monkeypatch):
    """The simulated graphs on the CPU, None on a GPU."""
    return SimulatedGraphs(monkeypatch) if device == "cpu" else None


def make_pair(cfg, model):
    """A model prepared for training without the switch, and a copy with it."""
    plain, ours, cfg = model.train(), copy.deepcopy(model), cfg.clone()
    prepare_for_training(plain, cfg)
    cfg.MODEL.DEVICE, cfg.MODEL.CUDA_GRAPHS = "cuda", True
    prepare_for_training(ours, cfg)
    return plain, ours


def check_equal_steps(plain, ours, num_steps, device, dtype=torch.float32):
    """Losses, gradients, weights and statistics; sums may have another order."""
    near = tolerance(device, dtype, times=2)
    for i in range(num_steps):
        if i == num_steps - 1:  # as PreciseBN sets them
            for module in (*plain.model.modules(), *ours.model.modules()):
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean += 0.1
        results = []
        for trainer in (plain, ours):
            torch.manual_seed(i)
            losses = step(trainer, i)
            drawn = torch.rand(1)  # the recording must not change the numbers that follow
            tensors = {**gradients(trainer.model), **dict(trainer.model.named_buffers())}
            results.append((losses, drawn, {n: t.float() for n, t in tensors.items()}))
        (expected, drawn, tensors), found = results
        assert found[0] == pytest.approx(expected, rel=near["rtol"]) and found[1] == drawn
        assert found[2].keys() == tensors.keys()
        for name, value in tensors.items():
            limit = near["atol"] * max(value.abs().max().item(), 1e-3)
            assert (found[2][name] - value).abs().max() <= limit, (i, name)


@pytest.mark.parametrize(
    "run", [pytest.param(r, marks=[pytest.mark.slow] if r == "bfloat16" else []) for r in RUNS]
)
def test_a_detector(run, device, simulated):
    kind, opts, kwargs, num_replays = RUNS[run]
    opts = ["MODEL.TIMM.NAME", "resnet10t", "MODEL.FPN.OUT_CHANNELS", "16", *opts]
    cfg = make_seeded_config(kind, *NO_SAMPLING, *opts, "MODEL.DEVICE", device)
    plain, ours = make_pair(cfg, make_seeded_model(cfg))
    batches = [make_detection_batches(SIZES[i], 1)[0] for i in ORDER]
    trainers = [make_trainer(model, batches, lr=1e-5, **kwargs) for model in (plain, ours)]
    check_equal_steps(*trainers, len(ORDER), device, kwargs.get("amp_dtype", torch.float32))
    # Forward and backward pass of backbone and head, in two sizes.
    assert simulated is None or simulated.replays == [num_replays] * 8
    with torch.no_grad():  # as PreciseBN does
        ours.backbone(torch.zeros(2, 3, 64, 96, device=device))
    ours.eval()(batches[0])
    copy.deepcopy(ours).train().backbone(torch.zeros(2, 3, 64, 96, device=device))
    assert simulated is None or simulated.replays == [num_replays] * 8


def test_a_classifier(device, simulated):
    opts = ["MODEL.TIMM.NAME", "resnet10t", "MODEL.CLASSIFIER.NUM_CLASSES", "3"]
    opts += ["MODEL.CLASSIFIER.DROP_PATH_RATE", "0.5", "MODEL.CLASSIFIER.DROPOUT", "0.5"]
    file = get_config_file("pretrain/resnet50_rsb_a3")
    cfg = load_config(file, [*opts, "MODEL.DEVICE", device])
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    batch = [{"image": x.to(torch.uint8), "label": i % 3} for i, x in enumerate(images)]
    trainers = [make_trainer(m, [batch] * 4, lr=1e-3) for m in make_pair(cfg, build_model(cfg))]
    check_equal_steps(*trainers, 4, device)
    assert simulated is None or simulated.replays == [3, 3]


def test_no_more_sizes_than_the_limit(device, simulated, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_MAX_SIZES", 2)
    layer = nn.Linear(3, 2, device=device)
    layer.forward = RecordedPart(layer)
    for size in (1, 2, 3, 3, 2, 1, 1, 2, 3):
        x = torch.ones(size, 3, device=device)
        found = layer(x).sum()
        torch.testing.assert_close(found, nn.functional.linear(x, layer.weight, layer.bias).sum())
        found.backward()
    assert simulated is None or simulated.replays == [2, 2, 2, 2]


def test_bad_use_is_one_line(device, simulated):
    class Reading(nn.Linear):
        def forward(self, x):
            return super().forward(x) * x.sum().item()

    layer = Reading(3, 2, device=device)
    layer.forward = RecordedPart(layer)
    layer(torch.ones(1, 3, device=device))
    with pytest.raises(UserError, match="MODEL.CUDA_GRAPHS: Reading cannot be recorded .*False$"):
        layer(torch.ones(1, 3, device=device))


@pytest.mark.parametrize(
    "opts, world_size, message",
    [
        (["MODEL.DEVICE", "cpu"], 1, "is for a GPU, and MODEL.DEVICE is cpu"),
        ([], 2, "is for a training on one GPU, and there are 2 processes"),
        (["MODEL.COMPILE", "True"], 1, "records what MODEL.COMPILE compiles"),
    ],
)
def test_configs_that_are_refused(opts, world_size, message):
    cfg = make_seeded_config("faster", "MODEL.DEVICE", "cuda", *opts)
    check_cuda_graphs(cfg, world_size)
    cfg.MODEL.CUDA_GRAPHS = True
    with pytest.raises(UserError, match=f"^MODEL.CUDA_GRAPHS {message}.*False$"):
        check_cuda_graphs(cfg, world_size)


def test_a_torch_that_cannot_record_beside_a_loader(monkeypatch):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda callables, sample_args: None)
    cfg = make_seeded_config("faster", "MODEL.CUDA_GRAPHS", "True")
    cfg.MODEL.DEVICE = "cuda"
    cfg.DATALOADER.NUM_WORKERS = 1
    with pytest.raises(UserError, match="needs torch 2.14, or DATALOADER.NUM_WORKERS 0; this is"):
        check_cuda_graphs(cfg, 1)
    cfg.DATALOADER.NUM_WORKERS = 0
    check_cuda_graphs(cfg, 1)
