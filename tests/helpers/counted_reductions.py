"""What each of two gloo processes does in tests of accumulation: trains, counts all-reduces."""

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rsb_d2.solver.accumulation import AccumulatingTrainer


class MeanLoss(nn.Module):
    """Mean squared outputs of images that are vectors."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, batch):
        return {"loss": self.layers(torch.stack([item["image"] for item in batch])).pow(2).mean()}


def make_batches(num_batches=3, size=8):
    generator = torch.Generator().manual_seed(0)
    return [
        [{"image": torch.randn(4, generator=generator)} for _ in range(size)]
        for _ in range(num_batches)
    ]


def train(model, batches, num_parts):
    """Take a step for each batch; yields before each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer = AccumulatingTrainer(SimpleTrainer(model.train(), batches, optimizer))
    trainer.accumulate(num_parts)
    for trainer.iter in range(len(batches)):
        yield
        with EventStorage(trainer.iter):
            trainer.run_step()


def train_distributed(num_parts):
    """The numbers of all-reduces of each step, and the weights at the end."""
    torch.manual_seed(0)
    model = DistributedDataParallel(MeanLoss())
    counts = []

    def reduce(group, bucket):
        counts[-1] += 1
        work = dist.all_reduce(bucket.buffer().div_(2), group=group, async_op=True)
        return work.get_future().then(lambda f: f.value()[0])

    model.register_comm_hook(None, reduce)
    rank = dist.get_rank()
    for _ in train(model, [batch[rank * 4 : rank * 4 + 4] for batch in make_batches()], num_parts):
        counts.append(0)
    return counts, nn.utils.parameters_to_vector(model.parameters()).tolist()
