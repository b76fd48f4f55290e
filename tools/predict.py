#!/usr/bin/env python
"""Detect objects in images and videos: annotated, a COCO results file and a table.

tools/predict.py --run output/frcnn_rsb_sample datasets/rsb_sample/val
    with the best weights of a training, or else its last ones
tools/predict.py --config-file configs/frcnn_rsb_1x.yaml --weights zoo://frcnn_rsb_1x a.jpg b.jpg
tools/predict.py --run output/mine 'photos/**/*.jpg' --threshold 0.3 --batch 8 --dtype bfloat16
tools/predict.py --run output/mine clip.mp4 --every 5
    an annotated clip without sound, and detections by frame

The exit status is 0, or 1 if an image or a frame could not be read (it is named and skipped), or 2
for a mistake on the command line or in the files that it names.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, tells_mistakes

from rsb_d2.errors import UserError
from rsb_d2.predict.files import (
    class_metadata,
    distinct,
    draw_detections,
    find_images,
    format_table,
    predict_files,
)
from rsb_d2.predict.predictor import (
    DTYPES,
    Predictor,
    load_predict_config,
)
from rsb_d2.predict.video import predict_video
from rsb_d2.predict.video_reader import check_video, find_videos


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("images", nargs="+", help="images, videos, folders and globs")
    parser.add_argument("--run", default="", help="OUTPUT_DIR of a training")
    parser.add_argument("--config-file", default="", help="a YAML file, or a name in the model zoo")
    parser.add_argument("--weights", default="", help="a file, zoo://NAME, ...")
    parser.add_argument("--output", default="", help="folder; RUN/predictions or predictions")
    parser.add_argument("--threshold", type=float, default=0.5, help="lowest score (0.5)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (1)")
    parser.add_argument("--every", type=int, default=1, help="of a video, every n-th frame (1)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 (the config's)")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides")
    return parser.parse_args()


@tells_mistakes
def main() -> int:
    args = parse_args()
    output = args.output or os.path.join(args.run, "predictions")
    videos, images = find_videos(args.images, output)
    _check(args, images, videos, output)  # before the model is loaded
    cfg = load_predict_config(
        args.config_file, args.weights, args.run, args.opts, args.device, args.threshold
    )
    predictor = Predictor.from_config(cfg, args.dtype)
    skipped = _predict_images(predictor, images, output, args) if images else False
    return 1 if _predict_videos(predictor, videos, output, args) or skipped else 0


def _check(args: argparse.Namespace, images: list, videos: list, output: str) -> None:
    if args.every < 1:
        raise UserError(f"--every is {args.every}; it must be 1 or more")
    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}; it must be 1 or more")
    if images:
        find_images(images, output)
    for video in videos:
        check_video(video)


def _predict_images(
    predictor: Predictor, images: list, output: str, args: argparse.Namespace
) -> bool:
    summary = predict_files(predictor, images, output, args.batch)
    print(format_table(summary))
    print(f"pictures: {os.path.join(output, 'pictures')}")
    print(f"results:  {summary.results_file}, COCO format; its ids are those of images.json")
    return bool(summary.skipped)


def _predict_videos(
    predictor: Predictor, videos: list, output: str, args: argparse.Namespace
) -> bool:
    metadata = class_metadata(predictor.classes.names)
    skipped = False
    for path, name in zip(videos, distinct(map(os.path.basename, videos))):
        clip = os.path.join(output, "videos", f"{name}.mp4")
        summary = predict_video(
            predictor,
            lambda image, found: draw_detections(image, found, metadata),
            path,
            clip,
            args.batch,
            args.every,
        )
        print(f"{path}: {summary.num_frames} frames, {summary.num_objects} objects")
        print(f"clip:    {summary.clip}")
        print(f"results: {summary.results_file}, COCO format; its ids are those of", end=" ")
        print(os.path.basename(summary.frames_file))
        skipped = skipped or bool(summary.skipped)
    return skipped


if __name__ == "__main__":
    sys.exit(main())
