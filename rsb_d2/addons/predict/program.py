"""The program ``rsb-d2 predict``, without its options."""

import argparse
import os
import sys

from ...errors import UserError, printable
from ...memory import reuse_freed_memory
from ...predictor import Predictor, load_predict_config
from .drawing import draw_detections
from .files import Inputs, find_inputs
from .pipeline import Options, predict_files
from .processes import Processes, join_processes
from .results import format_table, settings_of
from .video import BadVideoError, predict_video


def predict(args: argparse.Namespace) -> int:
    """Predict the files of a command line.

    Args:
        args (Namespace): the options that ``rsb-d2 predict --help`` lists.

    Returns:
        int: 0, or 1 if a file was skipped, 130 if interrupted.

    Raises:
        UserError: for a mistake on the command line.
    """
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
