"""Image classification as a kind of training, and its checks."""

import logging
from typing import Collection, Iterable, List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..config import get_value
from ..config.defaults import default_config
from ..data.datasets import registered
from ..engine.hooks import number_images
from ..engine.tasks import Task
from ..errors import UserError
from ..modeling.spec import classifier_spec, write_spec
from .classifier import ImageClassifier
from .data import EVALUATOR_TYPE, build_test_loader, build_train_loader
from .data.loading import ClassificationMapper, build_sampler, build_transform, mix_group
from .data.timm_datasets import sources
from .pictures import ClassificationPictures

logger = logging.getLogger(__name__)

# Keys that only detectors read, and the keys that a classifier reads instead.
_OF_DETECTORS = {
    "INPUT.MIN_SIZE_TRAIN": "INPUT.CLASSIFIER.TRAIN_SIZE",
    "INPUT.MAX_SIZE_TRAIN": "INPUT.CLASSIFIER.TRAIN_SIZE",
    "INPUT.MIN_SIZE_TEST": "INPUT.CLASSIFIER.TEST_SIZE",
    "INPUT.MAX_SIZE_TEST": "INPUT.CLASSIFIER.TEST_SIZE",
    "INPUT.DAMAGED_IMAGES": "DATALOADER.MAX_BAD_IMAGES",
    "INPUT.RANDOM_FLIP": "INPUT.CLASSIFIER.FLIP_PROB",
    "INPUT.CROP.ENABLED": "INPUT.CLASSIFIER.CROP_SCALE",
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.CLASSIFIER.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES": "MODEL.CLASSIFIER.NUM_CLASSES",
}


class ClassificationTask(Task):
    """One label for each image; see :class:`rsb_d2.engine.tasks.Task` for the methods."""

    name = "image classifier"

    def resolve(self, cfg: CfgNode, explicit_keys: Collection[str] = ()) -> None:
        write_spec(cfg, classifier_spec(cfg))

    def check_config(self, cfg: CfgNode) -> None:
        defaults = default_config()
        for key, instead in _OF_DETECTORS.items():
            value = get_value(cfg, key)
            if value != get_value(defaults, key):
                raise UserError(
                    f"{key} is {value!r}, which an image classifier does not read: leave "
                    f"it out; there is {instead}"
                )
        if cfg.MODEL.BACKBONE.FREEZE_AT:
            raise UserError(
                f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, but an image "
                "classifier trains all layers; write 0"
            )
        if cfg.TEST.AUG.ENABLED:
            raise UserError("TEST.AUG.ENABLED is for detectors; write False")
        _check_images(cfg.INPUT.CLASSIFIER)
        _check_smoothing(cfg.MODEL.CLASSIFIER)
        try:
            build_transform(cfg, is_train=True)
        except (AssertionError, ValueError, KeyError, IndexError, TypeError) as e:
            raise UserError(
                f"INPUT.CLASSIFIER.AUTO_AUGMENT is {cfg.INPUT.CLASSIFIER.AUTO_AUGMENT!r}, which "
                f"timm does not understand ({e or type(e).__name__}); write, for example, "
                "rand-m7-mstd0.5-inc1"
            ) from None

    def check_data(self, cfg: CfgNode, eval_only: bool) -> None:
        for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
            for name in cfg.DATASETS[split]:
                if MetadataCatalog.get(name).get("evaluator_type") != EVALUATOR_TYPE:
                    raise UserError(
                        f"DATASETS.{split}: {name} is not a data set of images with one label "
                        "each, which an image classifier needs; name one of DATASETS.IMAGE_FOLDER "
                        "or .TIMM, or use the config of a detector"
                    )

    def build_and_run(self, cfg: CfgNode, eval_only: bool) -> ImageClassifier:
        """Build the classifier on the meta device, and run it on images of the config's sizes."""
        images, channels = cfg.INPUT.CLASSIFIER, len(cfg.MODEL.PIXEL_MEAN)
        with torch.device("meta"), torch.no_grad():
            model = ImageClassifier(cfg).eval()
            for size in {images.TEST_SIZE, images.TEST_SIZE if eval_only else images.TRAIN_SIZE}:
                model.network(torch.empty(2, channels, size, size))
        # With REFERENCE_WORLD_SIZE, Detectron2 scales the batch by the number of processes.
        if not (eval_only or cfg.SOLVER.REFERENCE_WORLD_SIZE):
            mix_group(cfg, cfg.SOLVER.IMS_PER_BATCH)
        if not eval_only:
            build_sampler(cfg, num_images=1, seed=0)
        return model

    def records(self, cfg: CfgNode, split: str) -> Sequence[dict]:
        return [record for name in cfg.DATASETS[split] for record in registered(name)()]

    def build_train_loader(self, cfg: CfgNode):
        return build_train_loader(cfg)

    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> Iterable[list]:
        return build_test_loader(cfg, dataset_name)

    def build_validation_loader(self, cfg: CfgNode) -> Iterable[list]:
        mapper = ClassificationMapper(
            build_transform(cfg, is_train=False), sources(cfg.DATASETS.TEST)
        )
        return number_images(cfg, self.records(cfg, "TEST"), mapper)

    def build_picture_writer(self, cfg: CfgNode) -> ClassificationPictures:
        return ClassificationPictures(cfg)

    def optimize(self, model: ImageClassifier) -> ImageClassifier:
        return model  # there is no faster form

    def compile(self, model: ImageClassifier) -> None:
        model.network.compile()  # all images have one size

    def parts_to_record(self, model: ImageClassifier) -> List[nn.Module]:
        return [model.network]


def _check_images(keys: CfgNode) -> None:
    for name in ("CROP_SCALE", "CROP_RATIO"):
        values = keys[name]
        if len(values) != 2 or values[0] > values[1]:
            raise UserError(
                f"INPUT.CLASSIFIER.{name} is {list(values)}; write the lowest and the highest"
            )
    if keys.COLOR_JITTER and keys.AUTO_AUGMENT and "3a" not in keys.AUTO_AUGMENT:
        raise UserError(
            f"INPUT.CLASSIFIER.COLOR_JITTER is {keys.COLOR_JITTER}, but timm has none with "
            f"AUTO_AUGMENT {keys.AUTO_AUGMENT}; write 0.0 for the one or '' for the other"
        )


def _check_smoothing(keys: CfgNode) -> None:
    smoothing, thresh = keys.LABEL_SMOOTHING, keys.TARGET_THRESH
    if keys.LOSS != "bce" or thresh < 0 or not smoothing or keys.SMOOTH_AFTER_THRESH:
        return
    if smoothing / keys.NUM_CLASSES > thresh:
        raise UserError(
            f"MODEL.CLASSIFIER.LABEL_SMOOTHING {smoothing} gives each of {keys.NUM_CLASSES} "
            f"classes more than TARGET_THRESH {thresh}, so all would count as 1; raise that, or "
            "write MODEL.CLASSIFIER.SMOOTH_AFTER_THRESH True"
        )
    logger.warning(
        f"MODEL.CLASSIFIER.TARGET_THRESH {thresh} undoes LABEL_SMOOTHING {smoothing}, as in timm's "
        "train.py; SMOOTH_AFTER_THRESH True keeps both."
    )
