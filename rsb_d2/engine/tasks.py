"""Kinds of training: what a meta architecture needs around its model and Detectron2's trainer."""

from typing import Any, Iterable, List, Sequence

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from torch import nn

from ..config import add_rsb_config
from ..config.check_model import build_and_try, check_model
from ..config.check_values import check_values
from ..config.defaults import check_has_keys
from ..config.stock.follow import follow_stock_keys
from ..data.loader import (
    TrainLoader,
    annotated_records,
    build_test_loader,
    build_train_loader,
)
from ..errors import UserError
from ..extensions import ACCELERATION, EVALUATORS, TASKS
from ..registration import architecture_name
from .pictures import PictureWriter
from .validation import build_validation_loader


class Task:
    """Object detection and segmentation; another kind of training overrides what differs.

    Methods that take a config read it and do not change it, unless they say so.
    """

    name = "detector"

    def resolve(self, cfg: CfgNode, said: Any = ()) -> None:
        """Fill in the keys of the backbone that follow from others; changes ``cfg``."""
        follow_stock_keys(cfg, said)

    def check_config(self, cfg: CfgNode) -> None:
        """Check keys that only some kinds of training read.

        Raises:
            UserError: for a value that would not be read.
        """
        defaults = get_cfg()
        add_rsb_config(defaults)
        for node in ("MODEL", "INPUT"):
            for key, value in cfg[node].CLASSIFIER.items():
                if value != defaults[node].CLASSIFIER[key]:
                    raise UserError(
                        f"{node}.CLASSIFIER.{key} is {value!r}, but {cfg.MODEL.META_ARCHITECTURE} "
                        "is not an image classifier; leave it out, or write "
                        "MODEL.META_ARCHITECTURE ImageClassifier"
                    )

    def check_data(self, cfg: CfgNode, eval_only: bool) -> None:
        """Check that the data sets are of this kind of training.

        Raises:
            UserError: if one is not.
        """
        for split in ("TEST",) if eval_only else ("TRAIN", "TEST"):
            for name in cfg.DATASETS[split]:
                if MetadataCatalog.get(name).get("evaluator_type") in EVALUATORS:
                    raise UserError(
                        f"DATASETS.{split}: {name} has one label an image and no boxes, but "
                        f"{cfg.MODEL.META_ARCHITECTURE} is a detector; name data in COCO's format, "
                        "or use a config of configs/pretrain"
                    )

    def check_model(self, cfg: CfgNode, eval_only: bool) -> None:
        """Check that the model, its optimizer and what else is built without data can be built.

        Raises:
            UserError: if one cannot, or if the model fails with a batch.
        """
        check_model(cfg, eval_only, self.build_and_try)

    def build_and_try(self, cfg: CfgNode, eval_only: bool) -> nn.Module:
        """Build the model and run it on a small batch, as a check; returns the model."""
        return build_and_try(cfg, eval_only)

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
        return ACCELERATION.get("optimize_for_inference")(model)

    def compile(self, model: nn.Module) -> None:
        """Compile the part of a model that takes most of its time, in place.

        Weights keep their names. One program serves all image sizes.
        """
        model.backbone.compile(dynamic=True)


def get_task(cfg: CfgNode) -> Task:
    """Return the kind of training of a config, by its ``MODEL.META_ARCHITECTURE``."""
    name = architecture_name(cfg)
    return TASKS.get(name)() if name in TASKS else Task()


_checked: List[CfgNode] = []


def remember_checked(cfg: CfgNode) -> None:
    """Let :func:`check_config` pass over a config that was checked in more than it checks."""
    _checked[:] = [cfg.clone()]


def check_config(cfg: CfgNode) -> None:
    """Check the values and the model of a config that a script has made.

    Args:
        cfg (CfgNode): not changed.

    Raises:
        UserError: for a mistake in it.
    """
    if _checked == [cfg]:
        return
    check_has_keys(cfg, "")
    check_values(cfg, eval_only=False)
    task = get_task(cfg)
    task.check_config(cfg)
    task.check_model(cfg, eval_only=False)
