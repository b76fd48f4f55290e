"""Detect objects in images and videos: pictures, COCO results and a table.

rsb-d2 predict --run output/frcnn_rsb_sample datasets/rsb_sample/val
    with the best weights of a training, or its last ones if there are none
rsb-d2 predict --config-file frcnn_rsb_1x --weights zoo://frcnn_rsb_1x a.jpg b.jpg
rsb-d2 predict --run output/mine 'photos/**/*.jpg' --threshold 0.3 --batch 8 --dtype bfloat16
rsb-d2 predict --run output/mine clip.mp4 --every 5
    an annotated clip without sound, and detections by frame
rsb-d2 predict --run output/mine photos --output many --resume --shard 1/8
rsb-d2 predict merge many
    one of eight processes, on any machines that share a folder, and the results of all; with
    --resume, an interrupted one continues where it stopped

The exit status is 0; 1 if an image, a video, a frame or a folder could not be read, or a picture
could not be drawn (it is reported, and all others are processed); 2 for a mistake on the command
line or an output folder that is not writable. Files in a folder whose names are not those of images
or videos are counted and reported.
"""

import argparse
from os.path import expanduser

from .arguments import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", type=expanduser, nargs="+", help="images, videos, folders and globs"
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--output",
        type=expanduser,
        default="",
        metavar="FOLDER",
        help="output folder (RUN/predictions or predictions)",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="S", default=0.5, help="minimum score (0.5)"
    )
    parser.add_argument("--batch", type=int, metavar="N", default=1, help="batch size (1)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes for reading and as many for writing; 0 for none (default: by CPU cores)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write results only")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="predict the I-th of N parts (1/1)"
    )
    parser.add_argument(
        "--every", type=int, metavar="N", default=1, help="use every n-th frame of a video (1)"
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--device", default="", metavar="NAME", help="cpu, cuda, cuda:1 (the config's)"
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides"
    )


def run(args: argparse.Namespace) -> int:
    import rsb_d2

    rsb_d2.register_all()
    from ..predict.program import predict

    return predict(args)
