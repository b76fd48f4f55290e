"""Detectron2's default trainer with this project's optimizer, checkpointer and pictures."""

from typing import List

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..checkpoint import Checkpointer
from ..evaluation import build_evaluator
from ..solver import build_optimizer
from .pictures import PictureWriter


class Trainer(DefaultTrainer):
    """The trainer of ``train_net.py``; stock but for the pieces that Detectron2 lets one replace.

    Args:
        cfg (CfgNode): with the keys of :func:`rsb_d2.add_rsb_config`.
    """

    def build_hooks(self) -> List[HookBase]:
        """The stock hooks, with the checkpoints written by this project's checkpointer.

        The stock constructor makes its own checkpointer just before it calls this.
        """
        self.checkpointer = Checkpointer(
            self.model, self.cfg.OUTPUT_DIR, **self.checkpointer.checkpointables
        )
        hooks = super().build_hooks()
        if comm.is_main_process():
            # Behind the stock writer, which must have written the evaluation that is drawn.
            hooks.append(PictureWriter(self.cfg))
        return hooks

    # Detectron2 0.6 leaves the optimizer and the AMP scaler out of its checkpoints; its main
    # branch saves them as here.
    def state_dict(self):
        state = super().state_dict()
        state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)
