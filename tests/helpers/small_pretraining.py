"""A pretraining of seconds: a config of configs/pretrain on a few images of the sample objects."""

from detectron2.engine import default_argument_parser

from rsb_d2.addons.workbench.sample import make_sample_objects
from rsb_d2.config.setup import setup
from tests.helpers.paths import CONFIGS

CLASSES = ["circle", "square", "star", "triangle"]


def make_objects(folder, num_train=24, num_val=10, image_size=48):
    """Make ``datasets/rsb_sample_objects`` in a folder; returns it."""
    path = folder / "datasets" / "rsb_sample_objects"
    make_sample_objects(str(path), num_train=num_train, num_val=num_val, image_size=image_size)
    return path


def options(data, *opts):
    """``KEY VALUE`` pairs that make any config of a pretraining small."""
    folders = [[f"rsb_objects_{split}", f"{data}/{split}"] for split in ("train", "val")]
    return [
        *("DATASETS.IMAGE_FOLDER", str(folders)),
        *("DATASETS.TRAIN", "('rsb_objects_train',)", "DATASETS.TEST", "('rsb_objects_val',)"),
        *("MODEL.CLASSIFIER.NUM_CLASSES", "4", "MODEL.TIMM.NAME", "resnet18"),
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.AMP.ENABLED", "False"),
        *("INPUT.CLASSIFIER.TRAIN_SIZE", "32", "INPUT.CLASSIFIER.TEST_SIZE", "32"),
        *("SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "6", "SOLVER.WARMUP_ITERS", "0"),
        *("TEST.EVAL_PERIOD", "0", "SEED", "3", *opts),
    ]


def make_config(data, output, *opts, config="resnet50_rsb_a2", flags=()):
    """The frozen config of a small pretraining, as ``train_net.py`` makes it."""
    return setup(
        default_argument_parser().parse_args(
            [
                *("--config-file", str(CONFIGS / "pretrain" / f"{config}.yaml"), *flags),
                *options(data, "OUTPUT_DIR", str(output), *opts),
            ]
        )
    )
