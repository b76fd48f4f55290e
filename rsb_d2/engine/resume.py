"""What a run is resumed with beside its checkpoint: the state of each process."""

from typing import Any, Dict, List

from detectron2.utils import comm
from torch import distributed as dist
from torch import nn

from ..data.random_state import random_state, set_random_state
from ..utils import unwrap


def gather_process_states(model: nn.Module) -> List[Dict[str, Any]]:
    """Gather what each process has of its own; all processes must call it.

    Args:
        model (nn.Module): as it is trained.

    Returns:
        list[dict[str, Any]]: by rank: the random state, and of a RetinaNet or FCOS the running
        ``loss_normalizer``, which Detectron2 keeps outside of the model's state dict.
    """
    state = {"random": random_state()}
    normalizer = getattr(unwrap(model), "loss_normalizer", None)
    if normalizer is not None:
        state["loss_normalizer"] = float(normalizer)
    return comm.all_gather(state)


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the main one; all processes must call it.

    Running statistics of batch norm are of what each process has seen, and only those of the main
    one are in the checkpoint: an evaluation must be of these, in a run that was resumed or not.
    """
    if comm.get_world_size() == 1:
        return
    group = comm._get_global_gloo_group()
    for buffer in model.buffers():
        shared = buffer.detach().cpu()
        dist.broadcast(shared, 0, group=group)
        buffer.copy_(shared)


def set_process_state(model: nn.Module, states: List[Dict[str, Any]]) -> None:
    """Give this process what the one of the same rank had.

    Args:
        model (nn.Module): as of :func:`gather_process_states`.
        states (list[dict[str, Any]]): what that returned. Of a process beyond them, only the
            random state stays its own.
    """
    rank = comm.get_rank()
    if rank < len(states):
        set_random_state(states[rank]["random"])
    normalizer = states[min(rank, len(states) - 1)].get("loss_normalizer")
    if normalizer is not None:
        unwrap(model).loss_normalizer = normalizer
