"""Started by torchrun: takes steps on batches of which one rank's is broken, and on several batches a step.

guarded_steps.py OUTPUT
"""

import sys

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from models.rrdb import RRDBNet
from models.train_step import Batch, TrainStep
from utils.distributed import joined_world
from utils.entry import run

CPU = torch.device("cpu")
ROUNDS = []  # of communication, one entry for each bucket of gradients
KEPT = []  # networks with hooks: in PyTorch 2.6 their destruction hangs


def main() -> int:
    with joined_world() as world:
        torch.manual_seed(0)
        generator = RRDBNet(features=8, blocks=1, growth=4)
        step = TrainStep(
            generator=generator,
            generator_optimizer=torch.optim.SGD(generator.parameters(), lr=0.1),
            weights={"pixel": 1.0},
        )
        step.distribute(wrap=lambda network: counted(world.wrap(network, CPU)), add_up=world.add_up)
        lr, hr = torch.rand(2, 1, 3, 8, 8)[world.rank], torch.rand(2, 1, 3, 32, 32)[world.rank]
        step(Batch(lr, hr))  # the first one arranges the buckets
        before = [parameter.detach().clone() for parameter in generator.parameters()]
        broken = step(Batch(lr, hr * (float("nan") if world.rank == 1 else 1.0))).broken
        kept = all(torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))
        rounds = []
        for batches in (1, 3):
            ROUNDS.clear()
            step(*[Batch(lr, hr)] * batches)
            rounds.append(len(ROUNDS))
        gathered = world.gather({"broken": list(broken), "kept": kept, "rounds": rounds})
        if world.main:
            torch.save(gathered, sys.argv[1])
    return 0


def counted(network: DistributedDataParallel) -> DistributedDataParallel:
    def hook(group, bucket):
        ROUNDS.append(bucket.index())
        return allreduce_hook(group, bucket)

    network.register_comm_hook(None, hook)
    KEPT.append(network)
    return network


run(main)
