"""Several processes of one job without several starts: forks of this one, which talk over gloo."""

import os
import pickle
import traceback

import torch.distributed as dist


def run_forked(function, folder, num_processes=2):
    """Call a function in each of several processes of a job.

    Args:
        function (callable): takes the rank; what it returns is pickled.
        folder (Path): a new one.
        num_processes (int): of the job.

    Returns:
        list: what each has returned, by rank.
    """
    children = []
    for rank in range(num_processes):
        child = os.fork()
        if child == 0:
            _work(function, folder, rank, num_processes)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), "".join(p.read_text() for p in folder.glob("error.*"))
    return [pickle.loads((folder / f"result.{rank}").read_bytes()) for rank in range(num_processes)]


def _work(function, folder, rank, num_processes):
    try:
        store = dist.FileStore(str(folder / "store"), num_processes)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=num_processes)
        (folder / f"result.{rank}").write_bytes(pickle.dumps(function(rank)))
        dist.barrier()
    except BaseException:
        (folder / f"error.{rank}").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)
