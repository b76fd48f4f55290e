"""Options that several programs share."""

import argparse
from os.path import expanduser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a trained detector: ``--run``, ``--config-file``, ``--weights``."""
    parser.add_argument(
        "--run", type=expanduser, default="", metavar="FOLDER", help="OUTPUT_DIR of a training"
    )
    parser.add_argument(
        "--config-file",
        type=expanduser,
        default="",
        metavar="FILE",
        help="a YAML file, or a name in the model zoo",
    )
    parser.add_argument(
        "--weights", type=expanduser, default="", metavar="FILE", help="a file, zoo://, hf://, ..."
    )


def add_dataset_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--config-file``, ``--dataset``, ``--annotations``, ``--images`` and overrides.

    Args:
        parser (ArgumentParser): changed in place.
        default (str): describes which data set of a config is the default.
    """
    group = parser.add_argument_group("data set, either registered or from files")
    group.add_argument(
        "--config-file", type=expanduser, default="", metavar="FILE", help="config that names it"
    )
    group.add_argument("--dataset", metavar="NAME", help=f"registered name; by default {default}")
    group.add_argument(
        "--annotations", type=expanduser, metavar="FILE", help="COCO-format annotation file"
    )
    group.add_argument("--images", type=expanduser, metavar="FOLDER", help="its image folder")
    group.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of the config"
    )
