"""The processes of a run that torchrun has started: they share the images.

They communicate through gloo, also on GPUs, because they exchange only a few words.
"""

import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Callable, Iterator, TypeVar

import torch
import torch.distributed as dist

from ...errors import UserError

T = TypeVar("T")

# A process that is done waits for the others, which may have images for days.
_TIMEOUT = timedelta(days=365)


@dataclass(frozen=True)
class Processes:
    """This process and the number of processes of its run.

    Args:
        rank (int): 0 for the first process.
        size (int): number of processes on all machines.
        local_rank, local_size (int): the same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def agree(self, call: Callable[[], T]) -> T:
        """Call a function in each process; an error in one of them ends all.

        Args:
            call (callable): without arguments; must not use the other processes.

        Returns:
            Any: the result of this process.

        Raises:
            UserError: in the first process whose call has raised one.
            SystemExit: with the status 2, in the others.
        """
        result, error = None, None
        try:
            result = call()
        except UserError as e:
            error = e
        if self.size > 1:
            failed = [None] * self.size
            self._meet(dist.all_gather_object, failed, error is not None)
            if any(failed) and failed.index(True) != self.rank:
                sys.exit(2)
        if error is not None:
            raise error
        return result

    def first_does(self, call: Callable[[], T]) -> T:
        """Call a function in the first process and return its result in all.

        Args:
            call (callable): without arguments; its result can be pickled.

        Raises:
            UserError, SystemExit: as of :meth:`agree`.
        """
        shared = [self.agree(call if self.rank == 0 else lambda: None)]
        if self.size > 1:
            self._meet(dist.broadcast_object_list, shared, src=0)
        return shared[0]

    def any(self, value: bool = False) -> bool:
        """Wait for all processes, and return whether ``value`` is true in one of them."""
        if self.size == 1:
            return value
        values = [None] * self.size
        self._meet(dist.all_gather_object, values, value)
        return any(values)

    def device(self, device: str) -> str:
        """Return the device of this process.

        Args:
            device (str): of the run; for ``"cuda"``, each process has its own.

        Raises:
            UserError: if there are more processes than GPUs.
        """
        if self.size == 1 or device != "cuda":
            return device
        if self.local_size > torch.cuda.device_count():
            raise UserError(
                f"{self.local_size} processes on this machine need as many GPUs, and it has "
                f"{torch.cuda.device_count()}: write --nproc_per_node={torch.cuda.device_count()}"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def _meet(self, collective: Callable, *args: Any, **kwargs: Any) -> None:
        try:
            collective(*args, **kwargs)
        except RuntimeError as e:
            raise UserError(
                "another process of the run has ended, so this one ends as well; the same command "
                "with --resume continues"
            ) from e


ALONE = Processes()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the other processes of a torchrun; without torchrun there is one process."""
    # https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    rank, size, local_rank, local_size = (int(os.environ[name]) for name in names)
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Processes(rank, size, local_rank, local_size)
    finally:
        dist.destroy_process_group()
