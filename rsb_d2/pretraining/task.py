"""Image classification as a kind of training."""

from typing import Collection, Iterable, Sequence

from detectron2.config import CfgNode

from ..config.stock_keys import write_spec
from ..data.datasets import registered
from ..engine.tasks import Task
from ..engine.validation import number_images
from ..modeling.spec import classifier_spec
from .checks import check_classifier, check_data, run_network
from .classifier import ImageClassifier
from .data import build_test_loader, build_train_loader
from .data.loading import ClassificationMapper, build_transform
from .data.timm_datasets import sources
from .pictures import ClassificationPictures


class ClassificationTask(Task):
    """One label for each image; see :class:`rsb_d2.engine.tasks.Task` for the methods."""

    name = "image classifier"

    def resolve(self, cfg: CfgNode, explicit_keys: Collection[str] = ()) -> None:
        write_spec(cfg, classifier_spec(cfg))

    def check_config(self, cfg: CfgNode) -> None:
        check_classifier(cfg)

    def check_data(self, cfg: CfgNode, eval_only: bool) -> None:
        check_data(cfg, eval_only)

    def build_and_run(self, cfg: CfgNode, eval_only: bool) -> ImageClassifier:
        return run_network(cfg, eval_only)

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
