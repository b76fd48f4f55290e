"""An optimizer step on a batch that is computed in parts, one after the other."""

import time
from contextlib import nullcontext
from typing import Callable, ContextManager, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, SimpleTrainer
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from ..transfer import send_images
from ..utils import unwrap
from .batch_parts import PaddingToBatch, part_weights

Losses = Dict[str, torch.Tensor]


def check_accumulation(cfg: CfgNode, world_size: int) -> None:
    """Check that ``SOLVER.ACCUMULATE_STEPS`` divides each process's share of the batch.

    Args:
        cfg (CfgNode): not changed.
        world_size (int): number of processes.

    Raises:
        UserError: if it does not.
    """
    solver = cfg.SOLVER
    steps, reference = solver.ACCUMULATE_STEPS, solver.REFERENCE_WORLD_SIZE
    # Detectron2 scales the batch with the number of processes where the config names one.
    batch = solver.IMS_PER_BATCH * world_size // reference if reference else solver.IMS_PER_BATCH
    if steps > 1 and batch % (steps * world_size):
        many = f", of {world_size} processes" if world_size > 1 else ""
        raise UserError(
            f"SOLVER.ACCUMULATE_STEPS is {steps}{many}: SOLVER.IMS_PER_BATCH, the whole batch, "
            f"must be a multiple of {steps * world_size}, and is {batch}"
        )


def use_accumulation(trainer: DefaultTrainer, cfg: CfgNode) -> None:
    """Let a trainer compute its batches in ``SOLVER.ACCUMULATE_STEPS`` parts.

    Args:
        trainer (DefaultTrainer): constructed, and in mixed precision if it is to be; its inner
            trainer may be replaced.
        cfg (CfgNode): after :func:`check_accumulation`.
    """
    if cfg.SOLVER.ACCUMULATE_STEPS > 1:
        if not isinstance(trainer._trainer, AccumulatingTrainer):
            trainer._trainer = AccumulatingTrainer(trainer._trainer)
        trainer._trainer.accumulate(cfg.SOLVER.ACCUMULATE_STEPS)


class AccumulatingTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer``, which may compute the gradients of a batch in parts.

    The loader gives the whole batch, and an iteration is still a step of the optimizer. The
    gradients are those of the whole batch within rounding, where no statistics of a batch and no
    sampling come in: batch norm that is not fixed sees a part at a time, and the heads of an R-CNN
    average over the proposals that they sampled in a part. Several processes synchronise their
    gradients in the last part alone. What is logged is the mean over the parts.

    Attributes:
        device (torch.device): of the model.
        write_losses (callable or None): takes the losses and the seconds that the batch was waited
            for, between the backward pass and the step, in place of Detectron2's
            ``_write_metrics``; what it raises prevents the step.
    """

    def __init__(self, trainer: SimpleTrainer):
        """
        Args:
            trainer (SimpleTrainer): to take the place of, with its model, optimizer and loader.
        """
        # Not by the parent's constructor, which would start a second pass over the data.
        vars(self).update(vars(trainer))
        self.num_parts = 1
        self.device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        self.write_losses: Callable[[Losses, float], None] | None = None

    def accumulate(self, num_parts: int) -> None:
        """Compute each batch in parts from now on.

        Args:
            num_parts (int): a divisor of the images that this process has of a batch.
        """
        self.num_parts = num_parts
        self._padding = PaddingToBatch(unwrap(self.model))

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode!"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        batch = send_images(batch, self.device)

        # Before the forward pass, so that the gradients of the last step take no memory in it.
        self.optimizer.zero_grad()
        if self.num_parts == 1:
            losses = self.losses(batch)
            self.backward(sum(losses.values()))
        else:
            losses = self._losses_of_parts(batch)
        if hasattr(self, "after_backward"):  # Detectron2's main
            self.after_backward()
        self._log(losses, data_time)
        self.step()

    def losses(self, batch: List[dict]) -> Losses:
        """Forward.

        Args:
            batch (list[dict]): what the model takes.

        Returns:
            dict[str, Tensor]: what it returns; a single loss as ``"total_loss"``.
        """
        losses = self.model(batch)
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to those of the parts before."""
        loss.backward()

    def step(self) -> None:
        """Change the weights by the gradients of all parts."""
        self.optimizer.step()

    def _losses_of_parts(self, batch: List[dict]) -> Losses:
        """Forward and backward by parts; the losses of the whole batch."""
        size = len(batch) // self.num_parts
        parts = [batch[i * size : (i + 1) * size] for i in range(self.num_parts)]
        weights = part_weights(unwrap(self.model), self.num_parts)
        total: Losses = {}
        with self._padding.to_size_of(batch):
            for i, part in enumerate(parts):
                with self._synchronised(is_last=i == self.num_parts - 1):
                    losses = self.losses(part)
                    weight, weight_before = weights.after_forward(len(part))
                    if weight_before != 1.0:
                        self._scale_gradients(weight_before)
                    self.backward(weight * sum(losses.values()))
                for name, loss in losses.items():
                    before = weight_before * total[name] if name in total else 0.0
                    total[name] = before + weight * loss.detach()
        return total

    def _synchronised(self, is_last: bool) -> ContextManager:
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _scale_gradients(self, factor: float) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, factor)

    def _log(self, losses: Losses, data_time: float) -> None:
        if self.write_losses is not None:
            self.write_losses(losses, data_time)
        elif getattr(self, "async_write_metrics", False):  # Detectron2's main
            executor = self.concurrent_executor
            executor.submit(self._write_metrics, losses, data_time, iter=self.iter)
        else:
            self._write_metrics(losses, data_time)
