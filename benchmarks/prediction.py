"""Prediction of a folder of images: the pipeline of tools/predict.py and the model alone.

The model alone gets its batches from memory, read and resized. The pipeline reads JPEG files, runs
the same batches and writes results, and with pictures draws and writes those as well. The model is
Faster R-CNN with ResNet-50 and FPN, optimized, with seeded weights. The detections must be equal.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
from typing import Any, Dict, List

import torch

from rsb_d2.addons.accelerate import optimize_for_inference
from rsb_d2.addons.predict import pipeline
from rsb_d2.addons.predict.files import find_images
from rsb_d2.data.class_names import ClassNames
from rsb_d2.predictor import Predictor

from .harness import DTYPES, Different, Prepared, add_model_arguments, positive
from .models import build_ours, our_config, write_images

_MODEL, _RESULTS, _PICTURES = "the model alone", "results", "results and pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, "480x640")
    parser.add_argument("--images", type=positive, default=32, help="(32)")
    parser.add_argument("--detections", type=positive, default=15, help="in an image (15)")
    parser.add_argument("--test-size", type=positive, default=800, help="shorter side (800)")
    parser.add_argument("--workers", type=int, help="as in tools/predict.py (by the cores)")


def contenders(args: argparse.Namespace) -> List[str]:
    return [_MODEL, _RESULTS, _PICTURES]


def prepare(args: argparse.Namespace, name: str) -> Prepared:
    cfg = our_config(args.device)
    cfg.INPUT.MIN_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = args.test_size, args.detections
    model = build_ours(args.device)
    model.roi_heads.box_predictor.test_topk_per_image = args.detections
    numbers = range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    classes = ClassNames(tuple(f"class {i}" for i in numbers), tuple(i + 1 for i in numbers))
    model = optimize_for_inference(model, DTYPES[args.dtype], to_cpu=True)
    predictor = Predictor(cfg, model, classes)
    folder = tempfile.TemporaryDirectory()
    write_images(f"{folder.name}/{{:06d}}.jpg", args.image_size, args.images)
    images = find_images([folder.name])
    row = f"{args.images} images"
    if name == _MODEL:
        batches = _read_batches(predictor, images, args.batch)
        predict = torch.no_grad()(lambda: [predictor(batch) for batch in batches.values()])
        return Prepared({row: predict}, lambda: _flatten(predictor, batches))
    output = os.path.join(folder.name, "output")

    def predict_folder() -> None:
        folder  # noqa: B018  # keeps the images
        with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            options = pipeline.Options(args.batch, args.workers, name == _PICTURES)
            pipeline.predict_files(predictor, images, output, options)

    def results() -> List[dict]:
        predict_folder()
        with open(os.path.join(output, "results.json")) as f:
            return json.load(f)

    return Prepared({row: predict_folder}, results)


def _read_batches(predictor: Predictor, images: List[tuple], batch_size: int) -> Dict[tuple, Any]:
    """Return the batches that the pipeline makes, by the indices of their images."""
    done = bytes(len(images))
    chunks = pipeline.pending_chunks(done, batch_size)
    paths = [path for path, _ in images]
    batches = pipeline.ImageBatches(paths, chunks, done, predictor.preparation, batch_size, False)
    return {
        tuple(loaded.index for loaded in batch): [loaded.prepared for loaded in batch]
        for batch in pipeline.load(batches, 0)
    }


@torch.no_grad()
def _flatten(predictor: Predictor, batches: Dict[tuple, Any]) -> List[dict]:
    found = {}
    for indices, batch in batches.items():
        for index, instances in zip(indices, predictor(batch)):
            found[index] = predictor.to_coco(instances, index + 1)
    return [result for index in sorted(found) for result in found[index]]


def check(args: argparse.Namespace, results: Dict[str, List[dict]]) -> str:
    expected = results[_MODEL]
    if not expected or any(found != expected for found in results.values()):
        raise Different("the detections of the pipeline differ from those of the model alone")
    return f"{len(expected)} detections of the pipeline and of the model alone, to the last bit"
