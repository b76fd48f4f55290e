"""A predictor without a network: what it finds in an image follows from its pixels, and quickly.

As a program, it predicts a folder of images, or a shard of it, and kills itself where it is told;
see tests/addons/predict/test_pipeline.py.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from PIL import Image

from benchmarks.harness import peak_memory
from rsb_d2.addons.predict.files import find_images
from rsb_d2.addons.predict.pipeline import Options, predict_files
from rsb_d2.addons.predict.results import Shard
from rsb_d2.data.class_names import ClassNames
from rsb_d2.predictor import Preparation

SIZES = ((96, 64), (64, 96), (80, 80), (120, 64))


class ColourFinder:
    """What predict_files needs of a predictor; batches change scores, as padding does.

    Args:
        kill_at (int): the call before which it kills its process; 0 for never.
        masks (bool): whether objects have masks.
    """

    def __init__(self, kill_at=0, masks=False):
        cfg = get_cfg()
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT = 48, 96, "RGB"
        self.preparation = Preparation(cfg)
        self.input_format = "RGB"
        self.classes = ClassNames(("red", "green", "blue"), (2, 3, 5))
        self.model = torch.zeros(())  # for its device
        self.batches = []
        self._kill_at = kill_at
        self._masks = masks

    def start(self, batch):
        found = self(batch)
        return lambda: found

    def __call__(self, batch):
        self.batches.append(len(batch))
        if len(self.batches) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        padded = [max(entry["image"].shape[i] for entry in batch) for i in (1, 2)]
        return [self._find(entry, padded) for entry in batch]

    def _find(self, entry, padded):
        height, width = entry["height"], entry["width"]
        means = entry["image"].float().sum(dim=(1, 2)) / (255 * padded[0] * padded[1])
        found = Instances((height, width))
        left = means * width / 2
        boxes = [left, left / 2, left + width / 3, left / 2 + height / 3]
        found.pred_boxes = Boxes(torch.stack(boxes, dim=1))
        found.scores, found.pred_classes = means, torch.arange(3)
        if self._masks:
            ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            found.pred_masks = torch.stack([(xs > b[0]) & (ys < b[3]) for b in zip(*boxes)])
        keep = means > 0.2
        return found[keep]


def make_images(folder, number, seed=0):
    """Images of four shapes, of which the fifth is empty and the ninth is cut short."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(number):
        width, height = SIZES[rng.integers(len(SIZES))]
        cells = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = folder / f"{i:06d}.jpg"
        Image.fromarray(cells).resize((width, height)).save(path, quality=80)
        if i in (4, 8):
            path.write_bytes(path.read_bytes()[: 0 if i == 4 else 500])
    return folder


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("output")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--no-pictures", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--shard", type=Shard.parse, default=Shard())
    parser.add_argument("--kill", type=int, default=0, metavar="CALL")
    args = parser.parse_args()
    predictor = ColourFinder(args.kill)
    images = find_images([args.images], args.output)
    options = Options(args.batch, args.workers, not args.no_pictures, args.resume, args.shard)
    before, start = peak_memory(), time.perf_counter()
    summary = predict_files(predictor, images, args.output, options)
    said = {
        "shard": args.shard.name,
        "calls": len(predictor.batches),
        "images": sum(predictor.batches),
        "total": summary.num_images,
        "seconds": round(time.perf_counter() - start, 1),
        "MiB before and at the peak": [before >> 20, peak_memory() >> 20],
    }
    Path(f"{args.output}.{args.shard.name}.json").write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
