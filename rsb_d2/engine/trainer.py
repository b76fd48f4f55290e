"""Detectron2's default trainer with this project's optimizer, checkpointer and pictures."""

from typing import List

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm

from ..checkpoint import Checkpointer
from ..data.class_names import stored_class_names
from ..evaluation import build_evaluator
from ..solver import build_optimizer
from .best import StopTraining, build_best_hooks
from .pictures import PictureWriter
from .validation import ValidationLoss


class Trainer(DefaultTrainer):
    """The trainer of ``train_net.py``; stock but for the pieces that Detectron2 lets one replace.

    Args:
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`.

    Attributes:
        stopped_early (bool): whether ``SOLVER.EARLY_STOP_PATIENCE`` has ended the training.
    """

    stopped_early = False

    def build_hooks(self) -> List[HookBase]:
        """The stock hooks and this project's, with checkpoints by this project's checkpointer.

        The stock constructor makes its own checkpointer just before it calls this.
        """
        classes = stored_class_names(self.cfg)
        self.checkpointer = Checkpointer(
            self.model, self.cfg.OUTPUT_DIR, **self.checkpointer.checkpointables, **classes
        )
        hooks = super().build_hooks()
        ours = [ValidationLoss(self.cfg, self.model)] if self.cfg.TEST.VAL_LOSS else []
        ours += build_best_hooks(self.cfg, self.model, **classes)
        # Behind the evaluation, before the writer, which the main process alone has.
        position = len(hooks) - comm.is_main_process()
        hooks[position:position] = ours
        if comm.is_main_process():
            # Behind the stock writer, which must have written the evaluation that is drawn.
            hooks.append(PictureWriter(self.cfg))
        return hooks

    def train(self):
        """As the stock method; the training may end early, as if it had come to its end."""
        try:
            return super().train()
        except StopTraining:
            if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
                verify_results(self.cfg, self._last_eval_results)
                return self._last_eval_results

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        model = super().build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)
