"""What a training would do: its data, schedule, weights and memory, before the first iteration."""

import os
from collections import defaultdict
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from ...checkpoint import Checkpointer, locate
from ...config.loading import read_config
from ...config.resolving import resolve
from ...config.validating import validate
from ...data.damaged import damage_notes, find_damaged
from ...data.loader import evaluated_records
from ...errors import UserError, count, first
from ...files import sha256_of
from ...model_zoo.model_zoo import published_memory
from ...solver.build import optimizer_name, rate_by_rule, solver_warnings
from .report.boxes import Boxes, build_anchor_grid
from .report.source import Source, open_registered

_FEW_OBJECTS = 10
_BAD_FIT = 0.3  # an anchor with a lower IoU is background to the RPN of most configs
_SMALL = 8.0  # pixels in training
_EXAMPLES = 5
_KMEANS_ROUNDS = 50
# Bytes of a parameter: itself, its gradient, and the state of its optimizer, all float32.
_BYTES = {"SGD": 12, "AdamW": 16, "LAMB": 16}


def check(config_file: str, opts: List[str]) -> Dict[str, Any]:
    """Report the data, schedule and weights of a training before it starts.

    Args:
        config_file (str): YAML file of a detector.
        opts (list[str]): overrides, ``KEY VALUE ...``.

    Returns:
        dict: ``datasets``, ``boxes``, ``duplicates``, ``schedule``, ``weights``, ``memory``, and
        ``warnings`` (list[str]); of values that json can write. ``errors`` (list[str]) would end
        the training before its first iteration.

    Raises:
        UserError: if the config or its data cannot be read.
    """
    cfg, layers = read_config(config_file, opts)
    resolve(cfg, layers)
    warnings: List[str] = []
    errors = []
    weights = cfg.MODEL.WEIGHTS
    for step in (lambda: weights and locate(weights), lambda: validate(cfg)):
        try:
            step()
        except UserError as e:
            errors.append(str(e))
            cfg.MODEL.WEIGHTS = ""  # so that the rest is checked as well
    warnings += _damaged_images(cfg)
    splits = [(n, "train") for n in cfg.DATASETS.TRAIN] + [(n, "val") for n in cfg.DATASETS.TEST]
    sources = [(open_registered(cfg, name), split) for name, split in splits]
    report = {
        "config": config_file,
        "errors": errors,
        "datasets": [_describe(source, split, warnings) for source, split in sources],
        "boxes": _describe_boxes(cfg, sources, warnings),
        "duplicates": _duplicates(sources, warnings),
        "schedule": _schedule(cfg, warnings),
    }
    try:
        model = build_model(cfg)
    except UserError:  # which the validation has reported
        model = None
    if model is not None:
        report["weights"] = _weights(weights, cfg.MODEL.WEIGHTS, model, warnings)
        report["memory"] = _memory(cfg, model)
    return {**report, "warnings": warnings}


def _damaged_images(cfg: CfgNode) -> List[str]:
    """Return a line for the images of each test set that evaluations skip, or read in part."""
    lines = []
    for name in cfg.DATASETS.TEST if cfg.INPUT.DAMAGED_IMAGES in ("skip", "partial") else ():
        records = evaluated_records(cfg, name)
        lines += damage_notes(find_damaged(cfg, name, records), name, len(records))
    return lines


def _describe(source: Source, split: str, warnings: List[str]) -> Dict[str, Any]:
    counts = np.bincount(source.label[~source.crowd], minlength=len(source.class_names)).tolist()
    classes = dict(zip(source.class_names, counts))
    rare = [f"{name} ({n})" for name, n in classes.items() if n < _FEW_OBJECTS]
    if rare and split == "train":
        warnings.append(
            f"{source.name}: classes with fewer than {_FEW_OBJECTS} objects: {len(rare)}, "
            f"{first(rare, _EXAMPLES)}"
        )
    warnings.extend(source.warnings)
    annotated = len(np.unique(source.image))
    return {
        "name": source.name,
        "split": split,
        "images": len(source.images),
        "images_without_objects": len(source.images) - annotated,
        "objects": sum(counts),
        "crowds": int(source.crowd.sum()),
        "masks": int(source.has_mask.sum()),
        "classes": classes,
    }


def _describe_boxes(
    cfg: CfgNode, sources: List[Tuple[Source, str]], warnings: List[str]
) -> Dict[str, Any] | None:
    try:
        grid = build_anchor_grid(cfg)
    except UserError as e:
        warnings.append(f"anchors are not compared with the boxes: {e}")
        return None
    found = [Boxes(source, grid) for source, split in sources if split == "train"]
    sides = np.concatenate([b.xywh[:, 2:].min(axis=1) * b.scale for b in found])
    sizes = np.concatenate([b.size * b.scale for b in found])
    ious = np.concatenate([b.anchor_iou for b in found])
    if not len(sizes):
        return None
    is_small, is_bad_fit = sides < _SMALL, ious < _BAD_FIT
    if is_small.mean() > 0.1:
        warnings.append(
            f"{is_small.mean():.0%} of the boxes are thinner than {_SMALL:g} pixels in training; "
            "raise INPUT.MIN_SIZE_TRAIN and MAX_SIZE_TRAIN"
        )
    if is_bad_fit.mean() > 0.05:
        warnings.append(
            f"{is_bad_fit.mean():.0%} of the boxes have no anchor with an IoU of {_BAD_FIT} or "
            "more; change MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS, or the size of the images"
        )
    return {
        "median_size_in_training": float(np.median(sizes)),
        "smallest_size_in_training": float(sizes.min()),
        "largest_size_in_training": float(sizes.max()),
        "sizes_by_kmeans": kmeans(sizes, len(cfg.MODEL.ANCHOR_GENERATOR.SIZES)),
        "thinner_than_8_pixels": float(is_small.mean()),
        "median_iou_of_best_anchor": float(np.median(ious)),
        "best_anchor_below_0.3": float(is_bad_fit.mean()),
    }


def kmeans(sizes: np.ndarray, num_clusters: int) -> List[int]:
    """Return ``num_clusters`` sizes for anchors, by k-means of the logarithms of the boxes' sizes.

    Args:
        sizes (ndarray): of shape (N,), the square roots of the areas, in pixels; N > 0.
        num_clusters (int): at least 1.

    Returns:
        list[int]: the geometric mean of each cluster, rounded, in ascending order; fewer than
        ``num_clusters`` if some are empty or equal.
    """
    values = np.log(np.maximum(sizes, 1.0))
    centers = np.linspace(values.min(), values.max(), num_clusters)
    for _ in range(_KMEANS_ROUNDS):
        cluster = np.abs(values[:, None] - centers).argmin(axis=1)
        for i in np.unique(cluster):
            centers[i] = values[cluster == i].mean()
    return sorted({round(size) for size in np.exp(centers[np.unique(cluster)])})


def _duplicates(sources: List[Tuple[Source, str]], warnings: List[str]) -> Dict[str, Any]:
    """Find images of the same content in train and val; only files of the same length are read."""
    paths: Dict[str, set] = {"train": set(), "val": set()}
    for source, split in sources:
        paths[split].update(os.path.join(source.image_root, i["file_name"]) for i in source.images)
    by_length: Dict[int, Dict[str, List[str]]] = defaultdict(lambda: {"train": [], "val": []})
    for split, names in paths.items():
        for path in sorted(names):
            if os.path.isfile(path):  # not those in archives and behind addresses
                by_length[os.path.getsize(path)][split].append(path)
    pairs = []
    for group in by_length.values():
        if group["train"] and group["val"]:
            train = {sha256_of(path): path for path in group["train"]}
            pairs += [[train[d], path] for path in group["val"] if (d := sha256_of(path)) in train]
    if pairs:
        warnings.append(
            f"{len(pairs)} images of val are in train as well, so AP is too high: "
            f"{first([val for _, val in pairs], _EXAMPLES)}"
        )
    return {"train_and_val": len(pairs), "examples": pairs[:_EXAMPLES]}


def _schedule(cfg: CfgNode, warnings: List[str]) -> Dict[str, Any]:
    solver, batch = cfg.SOLVER, cfg.SOLVER.IMS_PER_BATCH
    num_images = sum(len(DatasetCatalog.get(n)) for n in cfg.DATASETS.TRAIN)
    epochs = solver.MAX_ITER * batch / max(num_images, 1)
    rule = rate_by_rule(cfg)
    warnings.extend(solver_warnings(cfg))
    if epochs < 3:
        warnings.append(f"the schedule has only {epochs:.1f} epochs; raise SOLVER.MAX_ITER")
    if epochs > 200 and not cfg.INPUT.LSJ.ENABLED:
        warnings.append(f"the schedule has {epochs:.0f} epochs; lower SOLVER.MAX_ITER and STEPS")
    per_epoch = num_images / batch
    return {
        "images_per_epoch": num_images,
        "batch": batch,
        "iterations": solver.MAX_ITER,
        "epochs": round(epochs, 2),
        "warmup_iterations": solver.WARMUP_ITERS,
        "steps_in_epochs": [round(s / per_epoch, 2) for s in solver.STEPS if s < solver.MAX_ITER],
        "optimizer": optimizer_name(cfg),
        "rate": solver.BASE_LR,
        "rate_by_rule": rule,
        "weight_decay": solver.WEIGHT_DECAY,
        "image_sizes": list(cfg.INPUT.MIN_SIZE_TRAIN),
        "longest_side": cfg.INPUT.MAX_SIZE_TRAIN,
    }


def _weights(source: str, usable: str, model: nn.Module, warnings: List[str]) -> Dict[str, Any]:
    """Load the weights, if they can be used, and report the modules that start at random."""
    if not source:
        warnings.append("MODEL.WEIGHTS is empty: everything starts from random weights")
    if not usable:
        return {"source": source, "format": None, "fresh": None}
    checkpointer = Checkpointer(model, save_to_disk=False)
    checkpointer.load(usable)
    loaded = checkpointer.report
    warnings.extend(f"the weights were trained with {line}" for line in loaded.differs)
    fresh = sorted({name.rpartition(".")[0] for name in loaded.initial})
    return {"source": source, "format": loaded.format_name, "fresh": fresh}


def _memory(cfg: CfgNode, model: nn.Module) -> Dict[str, Any]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in model.parameters()) - trained
    states = trained * _BYTES[optimizer_name(cfg)] + fixed * 4
    return {
        "parameters": trained + fixed,
        "trained_parameters": trained,
        "weights_and_optimizer_gb": round(states / 1e9, 2),
        "published_gb_for_2_images": published_memory(cfg),
        "device": str(torch.device(cfg.MODEL.DEVICE)),
    }


# ---- as text ----


def as_text(report: Dict[str, Any]) -> str:
    """Return the report of :func:`check` as lines for a terminal."""
    lines = []
    for d in report["datasets"]:
        lines.append(
            f"{d['split']:5} {d['name']}: {count(d['images'], 'image')} "
            f"({d['images_without_objects']} without objects), {count(d['objects'], 'object')}, "
            f"{count(d['crowds'], 'crowd')}, {count(d['masks'], 'mask')}"
        )
    names = list(dict.fromkeys(n for d in report["datasets"] for n in d["classes"]))
    width = max(map(len, [*names, "objects by class"]))
    lines.append(
        f"{'objects by class':{width}} " + " ".join(f"{d['split']:>8}" for d in report["datasets"])
    )
    for name in names:
        counts = " ".join(f"{d['classes'].get(name, 0):8}" for d in report["datasets"])
        lines.append(f"{name:{width}} {counts}")
    if boxes := report["boxes"]:
        lines.append(
            f"boxes in training: {boxes['smallest_size_in_training']:.0f} to "
            f"{boxes['largest_size_in_training']:.0f} pixels, median "
            f"{boxes['median_size_in_training']:.0f}; {boxes['thinner_than_8_pixels']:.1%} thinner "
            f"than 8; {boxes['best_anchor_below_0.3']:.1%} without an anchor of IoU 0.3; k-means "
            f"of their sizes: {', '.join(map(str, boxes['sizes_by_kmeans']))}"
        )
    lines.append(f"images both in train and val: {report['duplicates']['train_and_val']}")
    s = report["schedule"]
    lines.append(
        f"schedule: {s['iterations']} iterations of {s['batch']} images, {s['epochs']:g} epochs; "
        f"rate lowered after epochs {', '.join(f'{e:g}' for e in s['steps_in_epochs']) or 'none'}"
    )
    rule = f"{s['rate_by_rule']:g} by the rule" if s["rate_by_rule"] else "no rule"
    lines.append(
        f"optimizer: {s['optimizer']}, rate {s['rate']:g} ({rule}), weight decay "
        f"{s['weight_decay']:g}"
    )
    if weights := report.get("weights"):
        lines.append(f"weights: {weights['source'] or 'none'}{_fresh(weights)}")
    if memory := report.get("memory"):
        published = memory["published_gb_for_2_images"]
        of_training = f"; published: {published} GB for 2 images on a GPU" if published else ""
        lines.append(
            f"memory: {memory['parameters'] / 1e6:.1f} million parameters, "
            f"{memory['weights_and_optimizer_gb']} GB with gradients and optimizer{of_training}"
        )
    lines += [f"warning: {warning}" for warning in report["warnings"]]
    lines += [f"error: the training would stop: {error}" for error in report["errors"]]
    return "\n".join(lines)


def _fresh(weights: Dict[str, Any]) -> str:
    fresh = weights["fresh"]
    if fresh is None:
        return ""
    return f"; random at the start: {first(fresh, 8)}" if fresh else "; everything is loaded"
