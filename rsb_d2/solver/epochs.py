"""Schedules in epochs, converted to iterations."""

import logging
from typing import Any, List, NamedTuple, Tuple

from detectron2.config import CfgNode, get_cfg

from ..config.nodes import plain
from ..errors import UserError

logger = logging.getLogger(__name__)


class _Pair(NamedTuple):
    """Two keys of ``SOLVER`` with the same meaning."""

    epochs: str
    iterations: str


EPOCH_KEYS = (
    _Pair("MAX_EPOCHS", "MAX_ITER"),
    _Pair("WARMUP_EPOCHS", "WARMUP_ITERS"),
    _Pair("STEP_EPOCHS", "STEPS"),
)


def is_by_epochs(cfg: CfgNode) -> bool:
    """Whether a config gives the length, the warm-up or the steps of its schedule in epochs."""
    return any(cfg.SOLVER[pair.epochs] for pair in EPOCH_KEYS)


def epochs_to_iterations(num_epochs: int, num_images: int, batch_size: int) -> int:
    """Return the number of iterations that complete a number of epochs.

    It is rounded up once, because batches continue across the end of an epoch. timm (which drops
    the last incomplete batch) and mmpretrain (which fills it) round once in each epoch.
    """
    return -(-num_epochs * num_images // batch_size)


def resolve_epochs(cfg: CfgNode, num_images: int) -> None:
    """Fill in ``SOLVER.MAX_ITER``, ``WARMUP_ITERS`` and ``STEPS`` from values in epochs.

    The epochs stay in the config, and resolving them again changes nothing. A different value in
    iterations is an error.
    """
    solver, defaults = cfg.SOLVER, get_cfg().SOLVER
    for pair, iterations in _resolved(cfg, num_images):
        if plain(solver[pair.iterations]) != plain(defaults[pair.iterations]):
            _check_pair(cfg, pair, iterations, num_images)
        solver[pair.iterations] = iterations
        logger.info(f"{_in_words(cfg, pair, iterations, num_images)}.")
    steps = plain(solver.STEPS)
    if solver.MAX_EPOCHS and not solver.STEP_EPOCHS and solver.LR_SCHEDULER_NAME in _WITH_STEPS:
        logger.warning(
            f"SOLVER.STEPS {steps} are iterations, of SOLVER.MAX_ITER {solver.MAX_ITER}; "
            "SOLVER.STEP_EPOCHS gives them in epochs."
        )


def check_resolved(cfg: CfgNode, num_images: int) -> None:
    """Check that the iterations of a config match its epochs, also for a script's config."""
    for pair, iterations in _resolved(cfg, num_images):
        _check_pair(cfg, pair, iterations, num_images)


def _resolved(cfg: CfgNode, num_images: int) -> List[Tuple[_Pair, Any]]:
    """Return the iterations of each key that is given in epochs."""
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    in_epochs = [(pair, cfg.SOLVER[pair.epochs]) for pair in EPOCH_KEYS]
    return [(pair, _in_iterations(e, num_images, batch_size)) for pair, e in in_epochs if e]


def _check_pair(cfg: CfgNode, pair: _Pair, iterations: Any, num_images: int) -> None:
    given = plain(cfg.SOLVER[pair.iterations])
    if given != plain(iterations):
        off = "0" if isinstance(cfg.SOLVER[pair.epochs], int) else "[]"
        raise UserError(
            f"{_in_words(cfg, pair, iterations, num_images)}, but SOLVER.{pair.iterations} is "
            f"{given}; write {plain(iterations)} or leave it out, or SOLVER.{pair.epochs} {off}"
        )


def _in_words(cfg: CfgNode, pair: _Pair, iterations: Any, num_images: int) -> str:
    return (
        f"SOLVER.{pair.epochs} {plain(cfg.SOLVER[pair.epochs])} is {plain(iterations)} "
        f"iterations of SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, {num_images} images an "
        "epoch"
    )


_WITH_STEPS = ("WarmupMultiStepLR",)


def _in_iterations(epochs: Any, num_images: int, batch_size: int) -> Any:
    if isinstance(epochs, (list, tuple)):
        return tuple(epochs_to_iterations(e, num_images, batch_size) for e in epochs)
    return epochs_to_iterations(epochs, num_images, batch_size)


def keep_last_word(cfg: CfgNode, layers: List[dict]) -> None:
    """Let the last of several values in epochs and iterations override the earlier ones.

    ``layers`` has the ``SOLVER`` keys of each file and of the command line, the base files first.
    If one layer has both keys, both stay for :func:`resolve_epochs` to compare.
    """
    defaults = get_cfg().SOLVER
    for pair in EPOCH_KEYS:
        saying = [layer for layer in layers if pair.epochs in layer or pair.iterations in layer]
        if not saying or not cfg.SOLVER[pair.epochs]:
            continue
        if pair.epochs not in saying[-1]:
            logger.info(
                f"SOLVER.{pair.iterations} {plain(cfg.SOLVER[pair.iterations])} replaces "
                f"SOLVER.{pair.epochs} {cfg.SOLVER[pair.epochs]}."
            )
            cfg.SOLVER[pair.epochs] = type(cfg.SOLVER[pair.epochs])()
        elif pair.iterations not in saying[-1]:
            cfg.SOLVER[pair.iterations] = defaults[pair.iterations]
