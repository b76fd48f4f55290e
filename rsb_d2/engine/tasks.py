"""Kinds of training: the parts around a model and Detectron2's trainer, by META_ARCHITECTURE."""

from typing import Collection, Iterable, List, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn

from ..config.checks import check_schedule, check_values
from ..config.defaults import check_has_keys, default_config
from ..config.dry_run import build_and_run
from ..data.loader import (
    TrainLoader,
    annotated_records,
    build_test_loader,
    build_train_loader,
)
from ..errors import UserError
from ..extensions import ACCELERATION, EVALUATORS, LOGGERS, TASKS
from ..modeling.build import check_pixel_format, name_of_weights
from ..modeling.spec import backbone_spec, check_heads, is_timm_backbone, resolve_stock_keys
from ..registration import architecture_name
from ..solver.epochs import is_by_epochs
from .hooks import build_validation_loader
from .pictures import PictureWriter


class Task:
    """Object detection and segmentation; another kind of training overrides what differs.

    Methods that take a config do not change it, except :meth:`resolve`.
    """

    name = "detector"

    def resolve(self, cfg: CfgNode, explicit_keys: Collection[str] = ()) -> None:
        """Fill in the keys of the backbone that follow from others; changes ``cfg``."""
        resolve_stock_keys(cfg, explicit_keys)

    def check_config(self, cfg: CfgNode) -> None:
        """Check keys that only some kinds of training read."""
        defaults = default_config()
        for node in ("MODEL", "INPUT"):
            for key, value in cfg[node].CLASSIFIER.items():
                if value != defaults[node].CLASSIFIER[key]:
                    raise UserError(
                        f"{node}.CLASSIFIER.{key} is {value!r}, but {cfg.MODEL.META_ARCHITECTURE} "
                        "is not an image classifier; leave it out, or write "
                        "MODEL.META_ARCHITECTURE ImageClassifier"
                    )

    def check_data(self, cfg: CfgNode, eval_only: bool) -> None:
        """Check that the data sets are of this kind of training."""
        for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
            for name in cfg.DATASETS[split]:
                if MetadataCatalog.get(name).get("evaluator_type") in EVALUATORS:
                    raise UserError(
                        f"DATASETS.{split}: {name} has one label an image and no boxes, but "
                        f"{cfg.MODEL.META_ARCHITECTURE} is a detector; name data in COCO's format, "
                        "or use a config of configs/pretrain"
                    )

    def build_and_run(self, cfg: CfgNode, eval_only: bool) -> nn.Module:
        """Build the model and run it on a small batch, as a check; returns the model."""
        return build_and_run(cfg, eval_only)

    def records(self, cfg: CfgNode, split: str) -> Sequence[dict]:
        """Return the records that losses are computed on, of ``"TRAIN"`` or ``"TEST"``."""
        return annotated_records(cfg, split)

    def build_train_loader(self, cfg: CfgNode) -> TrainLoader:
        """Build the loader of a training."""
        return build_train_loader(cfg)

    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> Iterable[list]:
        """Build the loader of an evaluation: this process's share of the images, each once."""
        return build_test_loader(cfg, dataset_name)

    def build_validation_loader(self, cfg: CfgNode) -> Iterable[list]:
        """Build the loader of the validation loss."""
        return build_validation_loader(cfg)

    def build_picture_writer(self, cfg: CfgNode) -> PictureWriter:
        """Build the hook that draws the pictures of a run."""
        return PictureWriter(cfg)

    def optimize(self, model: nn.Module) -> nn.Module:
        """Return a faster model with equal results for an evaluation (``TEST.OPTIMIZE``)."""
        return ACCELERATION.get("optimize_for_inference")(model, to_cpu=True)

    def compile(self, model: nn.Module) -> None:
        """Compile the part of a model that takes most of its time, in place.

        Weights keep their names. One program serves all image sizes.
        """
        model.backbone.compile(dynamic=True)

    def parts_to_record(self, model: nn.Module) -> List[nn.Module]:
        """Return the parts of a model that training records with ``MODEL.CUDA_GRAPHS``."""
        head = getattr(getattr(model, "proposal_generator", None), "rpn_head", None)
        if isinstance(model, DenseDetector):
            head = model.head
        return [model.backbone, *([] if head is None else [head])]


def get_task(cfg: CfgNode) -> Task:
    """Return the kind of training of a config, by its ``MODEL.META_ARCHITECTURE``."""
    name = architecture_name(cfg)
    return TASKS.get(name)() if name in TASKS else Task()


def check_config(cfg: CfgNode, eval_only: bool = False) -> None:
    """Check the keys of a config, without looking at the data or building the model."""
    check_has_keys(cfg, "")
    check_values(cfg, eval_only)
    if not (eval_only or is_by_epochs(cfg)):
        check_schedule(cfg)
    if not eval_only:
        _check_loggers(cfg)
    get_task(cfg).check_config(cfg)
    if is_timm_backbone(cfg):
        check_heads(cfg)
        check_pixel_format(cfg, name_of_weights(cfg.MODEL.WEIGHTS, backbone_spec(cfg).name))


def _check_loggers(cfg: CfgNode) -> None:
    for name in cfg.LOGGERS:
        try:
            logger = LOGGERS.get(str(name))
        except UserError as e:
            raise UserError(f"LOGGERS: {e}") from None
        logger.check()
