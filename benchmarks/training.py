"""Training of Faster R-CNN with ResNet-50 and FPN: stock Detectron2 and this project.

Stock is the config of Detectron2's zoo with its own backbone, frozen batch norm and SGD; ours is
configs/frcnn_rsb_1x.yaml with AdamW and this project's switches. Both start from the same seeded
weights and take the same images from memory; their losses before the first step must agree. On a
GPU, stock runs in float32 without TF32, in TF32, and in Detectron2's AMP.
"""

import argparse
from typing import Dict, List

import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from rsb_d2.engine import Trainer
from rsb_d2.engine.trainer import prepare_for_training
from rsb_d2.solver import build_optimizer

from .harness import DTYPES, Prepared, add_model_arguments, verdict
from .models import (
    LOW_RATE,
    Step,
    make_images,
    make_objects,
    our_config,
    seed_weights,
    stock_config,
    to_stock,
)

# Relative. Rounding may change one of the 512 proposals that the box head samples; lower precision
# changes more of them, so only the sum of the losses is compared.
LOSS_TOLERANCE, LOSS_TOLERANCE_LOW = 2e-3, 0.03


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--compile", action="store_true", help="ours with MODEL.COMPILE")
    parser.add_argument("--cuda-graphs", action="store_true", help="ours with MODEL.CUDA_GRAPHS")
    parser.add_argument("--nchw", action="store_true", help="ours without MODEL.CHANNELS_LAST")
    parser.add_argument("--no-fold", action="store_true", help="ours without TIMM.FOLD_NORM")


def contenders(args: argparse.Namespace) -> List[str]:
    return ["stock", *(["stock, TF32", "stock, AMP"] if args.device != "cpu" else []), "ours"]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    batch = [
        {**image, "instances": make_objects(args.image_size, seed)}
        for seed, image in enumerate(make_images(args.image_size, args.batch))
    ]
    cfg, dtype = our_config(args.device), "float16" if name == "stock, AMP" else "float32"
    cfg.DATALOADER.NUM_WORKERS = 0  # the batch is in memory
    if name == "ours":
        dtype = args.dtype
        cfg.MODEL.CHANNELS_LAST, cfg.MODEL.COMPILE = not args.nchw, args.compile
        cfg.MODEL.TIMM.FOLD_NORM, cfg.MODEL.CUDA_GRAPHS = not args.no_fold, args.cuda_graphs
    model = Trainer.build_model(cfg)
    seed_weights(model)
    if name == "ours":
        prepare_for_training(model, cfg)
    else:
        weights, cfg = to_stock(model.state_dict()), stock_config(args.device)
        model = build_model(cfg)
        model.load_state_dict(weights)
    cfg.SOLVER.BASE_LR = LOW_RATE
    optimizer = (build_optimizer if name == "ours" else build_stock_optimizer)(cfg, model)
    model.train()

    def losses() -> Dict[str, torch.Tensor]:
        seed_all_rng(0)  # for the proposals that are sampled
        with EventStorage(1):
            return model(batch)

    step = Step(losses, optimizer, args.device, DTYPES[dtype], name == "stock, TF32")
    calls = {
        "an iteration": step,
        "forward pass": step.forward,
        "forward and backward pass": step.backward,
        "optimizer step": optimizer.step,
    }
    return Prepared(calls, lambda: {name: loss.item() for name, loss in step.forward().items()})


def check(args: argparse.Namespace, results: Dict[str, Dict[str, float]]) -> str:
    stock, ours, tolerance = results["stock"], results["ours"], LOSS_TOLERANCE
    if args.dtype != "float32":
        stock, ours = ({"total loss": sum(x.values())} for x in (stock, ours))
        tolerance = LOSS_TOLERANCE_LOW
    difference = max(abs(ours[n] - loss) / max(abs(loss), 1e-3) for n, loss in stock.items())
    losses = ", ".join(f"{name} {loss:.4f}" for name, loss in stock.items())
    text = f"losses before the first step within {difference:.1e}: {losses}"
    return verdict(difference <= tolerance, text)
