"""The program ``rsb-d2 predict``, without its options."""

import argparse
import os
import sys
from typing import List

import torch.distributed as dist

from ...errors import UserError, printable
from ...memory import reuse_freed_memory
from ...predictor import Predictor, load_predict_config
from .drawing import draw_detections
from .files import Inputs, find_inputs
from .pipeline import Options, predict_files
from .results import Shard, Summary, format_table, merge_shards, settings_of
from .video import BadVideoError, predict_video

# The word in place of the images that merges shards, unless there is a file of this name.
_MERGE = "merge"


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
    if dist.is_torchelastic_launched() and os.environ["WORLD_SIZE"] != "1":
        raise UserError(
            "the processes of torchrun do not share the images; start each process with "
            "--shard I/N, then run `rsb-d2 predict merge OUTPUT`"
        )
    if args.images[0] == _MERGE and not os.path.lexists(_MERGE):
        return _merge(args.images[1:])
    try:
        return _predict(args)
    except KeyboardInterrupt:
        print("interrupted; run the same command with --resume to continue", file=sys.stderr)
        return 130


def _merge(folders: List[str]) -> int:
    if len(folders) != 1:
        raise UserError("write `predict merge OUTPUT`, with the --output of the shards")
    summary = merge_shards(folders[0])
    _print_summary(summary, folders[0])
    return int(bool(summary.num_skipped or summary.no_picture))


def _predict(args: argparse.Namespace) -> int:
    output = args.output or os.path.join(args.run, "predictions")
    # All mistakes on the command line are reported before the model is loaded.
    options = _options(args)
    found = find_inputs(args.images, output)
    predictor, settings = _load(args)
    skipped = list(found.skipped)
    is_complete = True
    if found.images:
        summary = predict_files(predictor, found.images, output, options, settings)
        is_complete = not (summary.num_skipped or summary.no_picture)
        skipped += [(path, f"no picture, {why}") for path, why in summary.no_picture]
        _print_summary(summary, output, options)
    number, count = options.shard
    videos = found.videos[number - 1 :: count]
    bad_videos, have_all_frames = _predict_videos(predictor, videos, output, args)
    _report(found, skipped + bad_videos)
    return int(bool(skipped or bad_videos) or not (is_complete and have_all_frames))


def _print_summary(summary: Summary, output: str, options: Options | None = None) -> None:
    print(format_table(summary))
    if options and options.pictures:
        print(f"pictures: {os.path.join(output, 'pictures')}")
    if options and options.shard.count > 1:
        print(f"results:  after all {options.shard.count} shards, `rsb-d2 predict merge {output}`")
    else:
        results = os.path.join(output, "results.json")
        print(f"results:  {results}, COCO format; its ids are those of images.json")


def _report(found: Inputs, skipped: list) -> None:
    for line in found.left_out:
        print(f"note: {printable(line)}")
    for path, reason in skipped:
        print(f"skipped {printable(path)}: {reason}", file=sys.stderr)


def _options(args: argparse.Namespace) -> Options:
    if args.every < 1:
        raise UserError(f"--every is {args.every}; it must be 1 or more")
    shard = Shard.parse(args.shard)
    return Options(args.batch, args.workers, not args.no_pictures, args.resume, shard)


def _load(args: argparse.Namespace) -> tuple:
    cfg = load_predict_config(
        args.config_file, args.weights, args.run, args.opts, args.device, args.threshold
    )
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
