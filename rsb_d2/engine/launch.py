"""Start one process or many, by Detectron2's launcher or under torchrun."""

import argparse
import multiprocessing
import os
import signal
import sys
import time
import uuid
from typing import Any, Callable, Iterator, Tuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import default_argument_parser
from detectron2.engine import launch as launch_detectron2
from detectron2.engine.launch import DEFAULT_TIMEOUT, _distributed_worker
from torch.distributed.rendezvous import register_rendezvous_handler

from ..errors import UserError


def launch(main: Callable[..., Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in as many processes as the command line or torchrun asks for.

    The processes communicate over NCCL, or without GPUs over gloo. If one fails, all end.

    Args:
        main (callable): an importable function, because new processes import it.
        args (Namespace): from ``detectron2.engine.default_argument_parser()``; under torchrun,
            ``--num-gpus`` and the options for several machines keep their defaults.

    Returns:
        Any: the result of ``main`` if there is one process, otherwise ``None``.

    Raises:
        UserError: if there are fewer GPUs than processes.
        SystemExit: if a process has failed, with its status, or with 128 plus the number of the
            signal that killed it.
    """
    if dist.is_torchelastic_launched():
        return _join_torchrun(main, args)
    num_processes = args.num_gpus * args.num_machines
    if num_processes <= 1:
        return main(args)
    _check_gpus(args.num_gpus)
    before = {n: signal.signal(n, _forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        launch_detectron2(
            _work,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=_address(args),
            args=(main, args, args.num_gpus),
        )
    except mp.ProcessExitedException as e:
        if e.exit_code >= 0:  # the process has printed the reason
            sys.exit(e.exit_code)
        print(f"process {e.error_index} was killed by {e.signal_name}", file=sys.stderr)
        sys.exit(128 - e.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _join_torchrun(main: Callable[..., Any], args: argparse.Namespace) -> Any:
    if args.num_gpus * args.num_machines > 1:
        raise UserError(
            "torchrun sets the number of processes: leave out --num-gpus and --num-machines"
        )
    # https://pytorch.org/docs/stable/elastic/run.html, "Environment Variables"
    world_size, local_size, rank, local_rank = (
        int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")
    )
    if world_size == 1:
        return main(args)
    _check_gpus(local_size)
    machine_rank = (rank - local_rank) // local_size
    # torchrun's store if it has one; otherwise the main process starts one.
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    url = f"{_MEETING}://" if has_store else "env://"
    _distributed_worker(
        local_rank, _work, world_size, local_size, machine_rank, url, (main, args, local_size)
    )


_MEETING = "rsb-d2"


def _meet(url: str, **kwargs: Any) -> Iterator[Tuple[dist.Store, int, int]]:
    """Rendezvous as with ``env://``, but under a new prefix in torchrun's store.

    Processes that torchrun restarts find the addresses of the earlier ones in its store, and would
    wait for those. So the main process chooses a new prefix and sends it to all current processes.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, world_size, False, timeout=DEFAULT_TIMEOUT)
    yield dist.PrefixStore(_name_of_meeting(store, rank, world_size), store), rank, world_size


def _name_of_meeting(store: dist.Store, rank: int, world_size: int) -> str:
    """Return a new name, the same in all processes."""
    own = uuid.uuid4().hex
    if rank:
        store.set(f"{_MEETING}/{rank}", own)
        name = store.get(f"{_MEETING}/{own}").decode()  # blocks until it is set
        store.set(f"{name}/{rank}", "here")
        return name
    name, missing = f"{_MEETING}/{own}", set(range(1, world_size))
    end = time.monotonic() + DEFAULT_TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{name}/{other}"]):
                missing.remove(other)
            elif store.check([f"{_MEETING}/{other}"]):  # current, or left by an earlier process
                other_own = store.get(f"{_MEETING}/{other}").decode()
                store.set(f"{_MEETING}/{other_own}", name)
        if time.monotonic() > end:
            raise TimeoutError(f"the processes {sorted(missing)} of {world_size} have not started")
        time.sleep(0.01)
    return name


register_rendezvous_handler(_MEETING, _meet)


def _check_gpus(num_processes: int) -> None:
    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < num_processes:
        raise UserError(
            f"{num_processes} processes on this machine need as many GPUs, and it has {num_gpus}"
        )


def _work(main: Callable[..., Any], args: argparse.Namespace, num_local: int) -> None:
    """Run ``main`` in one of several processes."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_local))
    try:
        main(args)
    except BaseException:
        # With NCCL this could wait for processes that have not failed yet.
        if dist.get_backend() == "gloo":
            dist.destroy_process_group()
        raise
    # At the exit of the interpreter, gloo's threads sometimes abort the process.
    dist.destroy_process_group()


def _forward(number: int, frame: Any) -> None:
    """Forward a signal to the child processes; this process ends when they have ended."""
    children: Tuple[Any, ...] = tuple(multiprocessing.active_children())
    for child in children:
        os.kill(child.pid, number)
    if not children:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _address(args: argparse.Namespace) -> str:
    """Return the rendezvous address; Detectron2's default is one port for all jobs of a user."""
    is_default = args.dist_url == default_argument_parser().get_default("dist_url")
    return "auto" if is_default and args.num_machines == 1 else args.dist_url
