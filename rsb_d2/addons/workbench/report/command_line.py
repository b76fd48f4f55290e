"""The command-line arguments that say which data set a tool is about."""

import argparse
from os.path import expanduser
from typing import Sequence, Tuple

from detectron2.config import CfgNode

from ....config.loading import load_config
from ....data.opening import is_image_folder
from ....errors import UserError
from ....evaluation.results import read_dataset_name
from ....extensions import TASKS
from ....registration import architecture_name
from ..sample import make_configured
from .source import (
    Source,
    count_masks,
    open_files,
    open_registered,
)


def add_dataset_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--config-file``, ``--dataset``, ``--annotations``, ``--images`` and overrides.

    Args:
        parser (ArgumentParser): changed in place.
        default (str): which data set of a config is the default, in words.
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


def open_dataset(
    args: argparse.Namespace,
    split: str,
    *,
    with_masks: bool | None = None,
    results_file: str = "",
) -> Tuple[Source, CfgNode | None]:
    """Open the data set that the arguments name.

    Args:
        args (Namespace): from a parser with :func:`add_dataset_arguments`.
        split (str): ``"TRAIN"`` or ``"TEST"``: whose first name is the default.
        with_masks (bool): whether annotations without a usable mask are dropped; None: as the
            config's ``MODEL.MASK_ON`` says, or if no annotation has a mask, not.
        results_file (str): results of an evaluation; the default is then their data set.

    Returns:
        Source: the data set.
        CfgNode: the config; None if there is none.

    Raises:
        UserError: for arguments that do not fit together, or files that cannot be used.
    """
    if bool(args.annotations) != bool(args.images):
        raise UserError("--annotations and --images go together: a file and its image folder")
    if args.annotations and args.dataset:
        raise UserError("--dataset and --annotations both name a data set; leave one out")
    if not (args.annotations or args.dataset or args.config_file):
        raise UserError(
            "no data set is named: write --annotations FILE --images FOLDER, "
            "or --config-file FILE and --dataset NAME"
        )
    cfg = load_config(args.config_file, args.opts) if args.config_file or args.dataset else None
    if cfg is not None and architecture_name(cfg) in TASKS:
        raise UserError(
            f"{args.config_file} is of an image classifier, whose images have no boxes to show; "
            "name a detector's config (train_net.py draws a classifier's images into its "
            "OUTPUT_DIR)"
        )
    if args.annotations:
        if not is_image_folder(args.images):
            raise UserError(f"--images: there is no folder {args.images}")
        if with_masks:
            with_masks = count_masks(args.annotations) > 0
        return open_files(args.annotations, args.images, with_masks=bool(with_masks)), cfg
    make_configured(cfg)
    name = _choose_dataset(args.dataset, cfg.DATASETS[split], split, results_file)
    if with_masks:
        files = {entry[0]: entry[1] for entry in cfg.DATASETS.COCO_JSON if len(entry) == 3}
        with_masks = name not in files or count_masks(files[name]) > 0
    return open_registered(cfg, name, with_masks=with_masks), cfg


def _choose_dataset(given: str | None, names: Sequence[str], split: str, results_file: str) -> str:
    evaluated = read_dataset_name(results_file) if results_file else ""
    if given and evaluated and given != evaluated:
        raise UserError(
            f"--dataset {given}: {results_file} has the results of {evaluated}; name the results "
            f"of {given}, or write --annotations FILE --images FOLDER instead of --dataset"
        )
    if given or evaluated:
        return given or evaluated
    if not names:
        raise UserError(f"DATASETS.{split} is empty; write --dataset NAME")
    if results_file and len(names) > 1:
        raise UserError(
            f"DATASETS.{split} has {len(names)} data sets ({', '.join(names)}); write --dataset "
            f"with the one that {results_file} has the results of"
        )
    return names[0]
