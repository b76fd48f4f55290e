"""One training step: accumulation, mixed precision, and the exchange between processes."""

import copy
import logging
import math
import os
import pickle
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from rsb_d2 import UserError
from rsb_d2.config.loading import load_config
from rsb_d2.data.images import BadImageError
from rsb_d2.engine.hooks import share_buffers
from rsb_d2.engine.signals import SignalWatch
from rsb_d2.engine.train_step import StepTrainer, check_accumulation
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.solver import build_optimizer
from tests.helpers.data.loaders import make_loader
from tests.helpers.devices import tolerance
from tests.helpers.installed import IS_MAIN
from tests.helpers.runs.switched_training import SwitchedTrainer, make_config
from tests.helpers.seeded_run import make_seeded_config, make_seeded_model


def run_forked(function, folder, num_processes=2):
    """Call a function in each of several processes of a job.

    Args:
        function (callable): takes the rank; what it returns is pickled.
        folder (Path): a new one.
        num_processes (int): of the job.

    Returns:
        list: what each has returned, by rank.
    """
    children = []
    for rank in range(num_processes):
        child = os.fork()
        if child == 0:
            _work(function, folder, rank, num_processes)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), "".join(p.read_text() for p in folder.glob("error.*"))
    return [pickle.loads((folder / f"result.{rank}").read_bytes()) for rank in range(num_processes)]


def _work(function, folder, rank, num_processes):
    try:
        store = dist.FileStore(str(folder / "store"), num_processes)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes)
        (folder / f"result.{rank}").write_bytes(pickle.dumps(function(rank)))
        dist.barrier()
    except BaseException:
        (folder / f"error.{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


class Classifier(nn.Module):
    """Mean cross-entropy of images that are vectors, without statistics of the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
        self.batch_sizes = []

    def forward(self, batch):
        self.batch_sizes.append(len(batch))
        device = self.layers[0].weight.device
        scores = self.layers(torch.stack([item["image"] for item in batch]).to(device))
        labels = torch.tensor([item["label"] for item in batch], device=device)
        return {"loss_cls": nn.functional.cross_entropy(scores, labels)}


def make_batches(num_batches=3, size=8):
    generator = torch.Generator().manual_seed(0)
    return [
        [{"image": torch.randn(5, generator=generator), "label": i % 3} for i in range(size)]
        for _ in range(num_batches)
    ]


def make_trainer(model, batches, optimizer=None, lr=0.1, **kwargs):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    signals = SignalWatch(dist.get_world_size() if dist.is_initialized() else 1)
    return StepTrainer(model.train(), batches, optimizer, signals, **kwargs)


def step(trainer, i):
    """Take a step; return the metrics that it wrote, without times."""
    trainer.iter = i
    with EventStorage(i) as storage:
        trainer.run_step()
    return {name: value for name, (value, _) in storage.latest().items() if "time" not in name}


def weights(trainer):
    return nn.utils.parameters_to_vector(trainer.model.parameters()).tolist()


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_equal_steps(ours, theirs, num_steps=3):
    for i in range(num_steps):
        losses, expected = (
            {k: v for k, v in step(t, i).items() if "loss" in k} for t in (ours, theirs)
        )
        assert losses == pytest.approx(expected, rel=1e-4)
        found, expected = gradients(ours.model), gradients(theirs.model)
        assert found.keys() == expected.keys() and len(found) > 2
        for name, gradient in expected.items():
            limit = 1e-4 * max(gradient.abs().max(), 1e-3)
            assert (found[name] - gradient).abs().max() <= limit, name


# --- accumulation

FIXED = ["MODEL.TIMM.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "0"]
# Every anchor counts, and each image has the same number of proposals.
NO_SAMPLING = [
    *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "10"),
    *("MODEL.RPN.NMS_THRESH", "1.0", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "0"),
    *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "20"),
    *("MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.5"),
]
DETECTORS = {
    "faster": ("faster", NO_SAMPLING),
    "OpenMMLab's RetinaNet": ("retinanet", []),
    "Detectron2's RetinaNet": ("retinanet", ["MODEL.META_ARCHITECTURE", "RetinaNet"]),
}


def make_detection_batches(sizes, num_batches=3):
    """Random images of the given sizes with one to three objects; the last image has none."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(num_batches):
        batch = []
        for i, (height, width) in enumerate(sizes):
            count = 0 if i == len(sizes) - 1 else int(rng.integers(1, 4))
            corners = rng.uniform(0, 0.6, (count, 2)) * [width, height]
            boxes = np.concatenate([corners, corners + rng.uniform(12, 30, (count, 2))], 1)
            instances = Instances((height, width))
            instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
            instances.gt_classes = torch.tensor(rng.integers(0, 6, count), dtype=torch.long)
            image = torch.tensor(rng.integers(0, 256, (3, height, width)), dtype=torch.uint8)
            batch.append({"image": image, "instances": instances, "height": height, "width": width})
        batches.append(batch)
    return batches


@pytest.mark.parametrize("kind", DETECTORS)
def test_accumulated_gradients_of_a_detector(kind, device):
    config, opts = DETECTORS[kind]
    cfg = make_seeded_config(config, *FIXED, *opts, "MODEL.DEVICE", device)
    model = make_seeded_model(cfg).train()
    sizes = [(64, 96), (50, 70), (96, 64), (96, 96)]  # each part alone would be padded less
    batches = make_detection_batches(sizes)
    ours = make_trainer(copy.deepcopy(model), batches, lr=1e-3, num_parts=4)
    stock = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=1e-3))
    check_equal_steps(ours, stock)
    normalizer = getattr(model, "loss_normalizer", None)  # the divisor of the next step
    assert getattr(ours.model, "loss_normalizer", None) == pytest.approx(normalizer)
    assert (normalizer is not None) == (kind == "Detectron2's RetinaNet")


def test_accumulated_gradients_of_a_classifier(device):
    model = Classifier().to(device)
    ours = make_trainer(copy.deepcopy(model), make_batches(), num_parts=4)
    stock = SimpleTrainer(model, make_batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    check_equal_steps(ours, stock)
    assert model.batch_sizes == [8] * 3 and ours.model.batch_sizes == [2] * 12


def test_the_complete_gradient_is_clipped(device):
    opts = ["SOLVER.OPTIMIZER", "LAMB", "SOLVER.LAMB.MAX_GRAD_NORM", "0.01"]
    opts += ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.05"]
    found = []
    for num_parts in (1, 4):
        model = Classifier().to(device)
        optimizer = build_optimizer(load_config("", opts), model)
        trainer = make_trainer(model, make_batches(), optimizer, num_parts=num_parts)
        for i in range(3):
            step(trainer, i)
            if not i:
                largest = max(g.abs().max().item() for g in gradients(model).values())
                assert largest == pytest.approx(0.05)
        found.append(weights(trainer))
    assert found[1] == pytest.approx(found[0], rel=1e-4, abs=1e-6)


def test_two_processes_synchronize_once_a_step_and_equal_one_process(tmp_path):
    def work(rank):
        found = []
        for num_parts in (1, 4):
            model = DistributedDataParallel(Classifier())
            counts = []

            def reduce(group, bucket, counts=counts):
                counts[-1] += 1
                work = dist.all_reduce(bucket.buffer().div_(2), group=group, async_op=True)
                return work.get_future().then(lambda f: f.value()[0])

            model.register_comm_hook(None, reduce)
            batches = [batch[rank * 4 : rank * 4 + 4] for batch in make_batches()]
            trainer = make_trainer(model, batches, num_parts=num_parts)
            for i in range(3):
                counts.append(0)
                step(trainer, i)
            found.append((counts, weights(trainer)))
        return found

    ((counts, found), (counts_of_parts, found_of_parts)), _ = run_forked(work, tmp_path)
    assert counts_of_parts == counts and min(counts) >= 1
    trainer = make_trainer(Classifier(), make_batches())
    for i in range(3):
        step(trainer, i)
    assert found == pytest.approx(weights(trainer), rel=1e-5, abs=1e-6)
    assert found_of_parts == pytest.approx(found, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "batch, steps, world_size, reference, divides",
    [
        *((16, 3, 1, 0, False), (16, 8, 4, 0, False), (2, 4, 1, 0, False)),
        *((16, 4, 4, 0, True), (16, 1, 3, 0, True), (4, 2, 4, 1, True), (7, 7, 1, 0, True)),
    ],
)
def test_batches_that_can_be_divided(batch, steps, world_size, reference, divides):
    opts = ["SOLVER.IMS_PER_BATCH", str(batch), "SOLVER.ACCUMULATE_STEPS", str(steps)]
    cfg = load_config("", [*opts, "SOLVER.REFERENCE_WORLD_SIZE", str(reference)])
    if divides:
        check_accumulation(cfg, world_size)
        return
    expected = f"ACCUMULATE_STEPS is {steps}.* multiple of {steps * world_size}, and is {batch}"
    with pytest.raises(UserError, match=expected):
        check_accumulation(cfg, world_size)


# --- mixed precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_training_in_mixed_precision(switch_folder, device, dtype):
    opts = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype, "MODEL.DEVICE", device]
    trainer = SwitchedTrainer(make_config(switch_folder, *opts))
    scaler = trainer._trainer.grad_scaler
    assert scaler.is_enabled() == (dtype == "float16")
    dtypes = set()
    trainer.model.backbone.fpn_output2.register_forward_hook(lambda m, i, o: dtypes.add(o.dtype))
    trainer.max_iter = 1
    trainer.train()
    assert dtypes == {getattr(torch, dtype)}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())
    # A state from another precision also loads.
    state = trainer.state_dict()
    assert state["_trainer"]["grad_scaler"] == scaler.state_dict()
    state["_trainer"]["grad_scaler"] = torch.amp.GradScaler(device, init_scale=8.0).state_dict()
    trainer.load_state_dict(state)
    del state["_trainer"]["grad_scaler"]
    trainer.load_state_dict(state)
    assert scaler.get_scale() == (8.0 if dtype == "float16" else 1.0)


class OverflowsOnce(Classifier):
    """A classifier with an infinite gradient in the second part of the second step."""

    def forward(self, batch):
        losses = super().forward(batch)
        if len(self.batch_sizes) == 6:
            losses["loss_cls"] = losses["loss_cls"] + self.layers[0].weight.sum() * 1e38
        return losses


def make_scaled_trainer(model, batches, optimizer=None, scale=1024.0, **kwargs):
    """A trainer that scales its gradients; computes in bfloat16 for every CPU."""
    trainer = make_trainer(model, batches, optimizer, amp_dtype=torch.bfloat16, **kwargs)
    trainer.grad_scaler = torch.amp.GradScaler(trainer.device.type, init_scale=scale)
    return trainer


def test_an_overflow_in_one_part_skips_the_step(device):
    trainer = make_scaled_trainer(OverflowsOnce().to(device), make_batches(), num_parts=4)
    vectors, scales = [weights(trainer)], []
    for i in range(3):
        step(trainer, i)
        vectors.append(weights(trainer))
        scales.append(trainer.grad_scaler.get_scale())
    assert scales == [1024.0, 512.0, 512.0]
    assert [a == b for a, b in zip(vectors, vectors[1:])] == [False, True, False]


def test_gradients_are_unscaled_before_they_are_clipped(device):
    """AdamW's fused step accepts scaled gradients, which must not be clipped as they are."""
    opts = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    opts += ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "100.0"]
    found = []
    for make, kwargs in [
        (make_trainer, {"amp_dtype": torch.bfloat16}),
        (make_scaled_trainer, {"scale": 65536.0}),
    ]:
        model = Classifier().to(device)
        optimizer = build_optimizer(load_config("", opts), model)
        step(make(model, make_batches(), optimizer, **kwargs), 0)
        found.append(gradients(model))
    for name, gradient in found[0].items():  # far below the limit, so nothing is clipped
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7)


# --- exchange between processes


class Model(nn.Module):
    """Two losses of images that are a number; the second one is multiplied by a factor."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 3)

    def forward(self, batch):
        x = torch.tensor([[float(image["image_id"])] for image in batch]) / 23
        out = self.layer(x).square().mean()
        return {"loss_a": out, "loss_b": out * batch[-1].get("factor", 1.0)}


def make_model():
    return DistributedDataParallel(Model()) if dist.is_initialized() else Model()


def with_factor(factor, image_id):
    return lambda record: {**record, "factor": factor if record["image_id"] == image_id else 1.0}


def steps_until_error(trainer, num_steps=8):
    before = weights(trainer)
    for i in range(num_steps):
        try:
            step(trainer, i)
        except (FloatingPointError, UserError) as e:
            return i, str(e), getattr(e, "files", None), before == weights(trainer)
        before = weights(trainer)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("make", [make_trainer, make_scaled_trainer])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_no_step_with_a_non_finite_loss_is_taken(factor, make, num_parts):
    batches = iter(make_loader())
    second = [next(batches) for _ in range(2)][1]
    loader = make_loader(with_factor(factor, second[-1]["image_id"]))
    i, message, files, is_same = steps_until_error(make(make_model(), loader, num_parts=num_parts))
    assert i == 1 and is_same
    assert message.startswith("the loss is not finite: loss_a 0.") and str(factor) in message
    assert files == [image["file_name"] for image in second]


def test_all_processes_stop_before_a_step_that_is_not_finite_in_one(tmp_path):
    def work(rank):
        batches = iter(make_loader())
        third = [next(batches) for _ in range(3)][2]
        loader = make_loader(with_factor(math.nan, third[-1]["image_id"] if rank else -1))
        files = [image["file_name"] for image in third]
        return files, steps_until_error(make_trainer(make_model(), loader))

    (_, of_0), (files, of_1) = run_forked(work, tmp_path)
    assert of_0 == of_1 == (2, of_1[1], files, True)
    assert "not finite in process 1: " in of_1[1] and "loss_b nan" in of_1[1]


class Reads(TorchDispatchMode):
    """Counts how often a number is read from the device, as by ``item``."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_metrics_equal_detectron2s_without_more_waits_or_gathers(tmp_path, monkeypatch):
    gathers = []
    for name in ("all_gather", "gather", "all_gather_object", "gather_object", "barrier"):
        original = getattr(dist, name)

        def count(*args, original=original, name=name, **kwargs):
            gathers.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(dist, name, count)

    def work(rank):
        found = []
        for is_stock in (True, False):
            model = make_model()
            loader = [[image.copy() for image in b] for _, b in zip(range(3), make_loader())]
            if is_stock:
                trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.1))
            else:
                trainer = make_trainer(model, make_loader())
            step(trainer, 0)
            gathers.clear()
            with Reads() as reads:
                written = [step(trainer, i) for i in (1, 2)]
            found.append((written, weights(trainer), len(gathers), reads.count))
        return found

    for rank, (stock, ours) in enumerate(run_forked(work, tmp_path)):
        assert ours[:2] == stock[:2]
        assert ours[0][0].keys() == (set() if rank else {"total_loss", "loss_a", "loss_b"})
        # Detectron2 0.6 gathers sizes and contents, its main branch gathers objects.
        assert ours[2] == stock[2] == (2 if IS_MAIN else 4)
        assert IS_MAIN or ours[3] < stock[3]


def test_a_single_loss_and_losses_of_several_types():
    class Single(Model):
        def forward(self, batch):
            return super().forward(batch)["loss_a"]

    class Mixed(Model):
        def forward(self, batch):
            losses = super().forward(batch)
            return {"a": losses["loss_a"].double(), "b": losses["loss_b"].bfloat16().reshape(1)}

    for kind in (Single, Mixed):
        model = kind()
        stock = SimpleTrainer(model, make_loader(), torch.optim.SGD(model.parameters(), lr=0.1))
        found = step(make_trainer(kind(), make_loader()), 0)
        assert found == step(stock, 0) and "total_loss" in found


def bad(*numbers):
    def mapper(record):
        if record["image_id"] in numbers:
            raise BadImageError(record["file_name"], "it is bad")
        return record

    return mapper


def test_bad_images_and_signals_reach_all_processes(tmp_path, caplog):
    def work(rank):
        caplog.handler.setLevel(logging.WARNING)
        loader = make_loader(bad(3, 5) if rank else bad(4), max_bad_images=3)
        trainer = make_trainer(make_model(), loader)
        received = []
        for i in range(12):
            if rank and i == 6:
                trainer._signals.received = 15
            step(trainer, i)
            received.append(trainer._signals.received_by_any)
        return loader.state_dict()["bad_images"], received, caplog.text.count("Skipped a bad image")

    of_0, of_1 = run_forked(work, tmp_path)
    images = dict.fromkeys(["3.jpg", "4.jpg", "5.jpg"], "it is bad")
    assert of_0 == of_1 == (images, [None] * 6 + [15] * 6, 3)


def test_all_processes_evaluate_with_the_statistics_of_the_checkpoint(tmp_path):
    def work(rank):
        norm = nn.BatchNorm2d(2)
        norm(torch.full((1, 2, 3, 3), rank + 1.0))
        share_buffers(norm)
        return norm.running_mean.tolist(), int(norm.num_batches_tracked)

    of_0, of_1 = run_forked(work, tmp_path)
    assert of_0 == of_1 == (pytest.approx([0.1, 0.1]), 1)


def test_data_parallelism_on_the_backend_of_the_device(device, tmp_path):
    """NCCL with SyncBN on a GPU, gloo on the CPU: the gradients of a model that is not wrapped."""
    is_cpu = torch.device(device).type == "cpu"
    norm = ["MODEL.TIMM.NORM", "BN" if is_cpu else "SyncBN", "MODEL.TIMM.NORM_EVAL", "True"]
    cfg = make_seeded_config("faster", *norm, "MODEL.DEVICE", device)
    model = make_seeded_model(cfg).train()
    (batch,) = make_detection_batches([(64, 96), (96, 64)], num_batches=1)
    wrapped = copy.deepcopy(model)

    def compute(model):
        torch.manual_seed(0)
        with EventStorage(1):
            sum(model(batch).values()).backward()

    compute(model)
    backend = "gloo" if is_cpu else "nccl"
    dist.init_process_group(backend, f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        prepare_for_training(wrapped, cfg)
        compute(DistributedDataParallel(wrapped, device_ids=None if is_cpu else [0]))
    finally:
        dist.destroy_process_group()
    found, expected = gradients(wrapped), gradients(model)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in expected.items():
        near = tolerance(device, times=10 * max(1.0, gradient.abs().max().item()))
        torch.testing.assert_close(found[name], gradient, **near, msg=name)
