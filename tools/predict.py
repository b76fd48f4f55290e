#!/usr/bin/env python
"""Detect objects in images and videos; write annotated pictures, COCO results and a table.

tools/predict.py --run output/frcnn_rsb_sample datasets/rsb_sample/val
    with the best weights of a training, or its last ones if there are none
tools/predict.py --config-file configs/frcnn_rsb_1x.yaml --weights zoo://frcnn_rsb_1x a.jpg b.jpg
tools/predict.py --run output/mine 'photos/**/*.jpg' --threshold 0.3 --batch 8 --dtype bfloat16
tools/predict.py --run output/mine clip.mp4 --every 5
    an annotated clip without sound, and detections by frame
torchrun --nproc_per_node=8 -- tools/predict.py --run output/mine photos --no-pictures --resume
    on eight GPUs; an interrupted run continues where it stopped (without the --, torchrun treats
    --run as an option of its own)

The exit status is 0; 1 if an image, a video, a frame or a folder could not be read, or a picture
could not be drawn (it is reported, and all others are processed); 2 for a mistake on the command
line or an output folder that is not writable. Files in a folder whose names are not those of images
or videos are counted and reported.
"""

import argparse
import os
import sys
from os.path import expanduser

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from _program import make_parser, report_user_errors

from rsb_d2.addons.predict.drawing import draw_detections
from rsb_d2.addons.predict.files import Inputs, find_inputs
from rsb_d2.addons.predict.pipeline import Options, predict_files
from rsb_d2.addons.predict.processes import Processes, join_processes
from rsb_d2.addons.predict.results import format_table, settings_of
from rsb_d2.addons.predict.video import BadVideoError, predict_video
from rsb_d2.errors import UserError, printable
from rsb_d2.memory import reuse_freed_memory
from rsb_d2.predictor import DTYPES, Predictor, load_predict_config


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "images", type=expanduser, nargs="+", help="images, videos, folders and globs"
    )
    parser.add_argument("--run", type=expanduser, default="", help="OUTPUT_DIR of a training")
    parser.add_argument(
        "--config-file", type=expanduser, default="", help="a YAML file, or a name in the model zoo"
    )
    parser.add_argument("--weights", type=expanduser, default="", help="a file, zoo://NAME, ...")
    parser.add_argument(
        "--output",
        type=expanduser,
        default="",
        help="output folder (RUN/predictions or predictions)",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="minimum score (0.5)")
    parser.add_argument("--batch", type=int, default=1, help="batch size (1)")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes for reading and as many for writing; 0 for none (default: by CPU cores)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write results only")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--every", type=int, default=1, help="use every n-th frame of a video (1)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1 (the config's)")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides"
    )
    return parser.parse_args()


@report_user_errors
def main() -> int:
    args = parse_args()
    # FFmpeg prints many lines about a damaged file, past Python's streams.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with join_processes() as processes:
        try:
            return _predict(args, processes)
        except KeyboardInterrupt:
            print("interrupted; run the same command with --resume to continue", file=sys.stderr)
            return 130


def _predict(args: argparse.Namespace, processes: Processes) -> int:
    output = args.output or os.path.join(args.run, "predictions")
    # All mistakes on the command line are reported before the model is loaded, by one process.
    options = processes.agree(lambda: _options(args))
    found = processes.first_does(lambda: find_inputs(args.images, output))
    predictor, settings = processes.agree(lambda: _load(args, processes))
    is_first = processes.rank == 0
    is_complete = True
    skipped = list(found.skipped) if is_first else []
    if found.images:
        summary = predict_files(predictor, found.images, output, options, settings, processes)
        is_complete = not (summary.num_skipped or summary.no_picture)
        if is_first:
            skipped += [(path, f"no picture, {why}") for path, why in summary.no_picture]
            print(format_table(summary))
            if options.pictures:
                print(f"pictures: {os.path.join(output, 'pictures')}")
            results = os.path.join(output, "results.json")
            print(f"results:  {results}, COCO format; its ids are those of images.json")
    mine = found.videos[processes.rank :: processes.size]
    bad_videos, have_all_frames = _predict_videos(predictor, mine, output, args)
    _report(found if is_first else None, skipped + bad_videos)
    return int(processes.any(bool(skipped or bad_videos) or not (is_complete and have_all_frames)))


def _report(found: Inputs | None, skipped: list) -> None:
    for line in found.left_out if found else []:
        print(f"note: {printable(line)}")
    for path, reason in skipped:
        print(f"skipped {printable(path)}: {reason}", file=sys.stderr)


def _options(args: argparse.Namespace) -> Options:
    if args.every < 1:
        raise UserError(f"--every is {args.every}; it must be 1 or more")
    return Options(args.batch, args.workers, not args.no_pictures, args.resume)


def _load(args: argparse.Namespace, processes: Processes) -> tuple:
    cfg = load_predict_config(
        args.config_file, args.weights, args.run, args.opts, args.device, args.threshold
    )
    cfg.MODEL.DEVICE = processes.device(cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE == "cpu":
        reuse_freed_memory()
    return Predictor.from_config(cfg, args.dtype), settings_of(cfg, args.dtype)


def _predict_videos(
    predictor: Predictor, videos: list, output: str, args: argparse.Namespace
) -> tuple:
    """Return path and error of each unusable video, and whether the others are complete."""
    names = predictor.classes.names
    bad, have_all_frames = [], True
    for path, name in videos:
        clip = os.path.join(output, "videos", f"{name}.mp4")
        try:
            summary = predict_video(
                predictor,
                lambda image, found: draw_detections(image, found, names),
                path,
                clip,
                args.batch,
                args.every,
            )
        except BadVideoError as e:
            bad.append((path, e.reason))
            continue
        print(f"{printable(path)}: {summary.num_frames} frames, {summary.num_objects} objects")
        print(f"clip:    {summary.clip}")
        print(f"results: {summary.results_file}, COCO format; its ids are those of", end=" ")
        print(os.path.basename(summary.frames_file))
        have_all_frames = have_all_frames and not summary.skipped
    return bad, have_all_frames


if __name__ == "__main__":
    sys.exit(main())
