"""Started by torchrun or alone: takes a step on this rank's share of a fixed batch of 4 and saves the gradients.

Then another one, after which the networks of the ranks are compared.

first_gradient.py OUTPUT
"""

import sys

import torch

from sed_sr.data.batches import Batch
from sed_sr.models.discriminators import UNetDiscriminator
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.train_step import Adversary, TrainStep
from sed_sr.options.cli import run
from sed_sr.utils.runtime.distributed import joined_world
from sed_sr.utils.train_run import synchronize


class Extractor(torch.nn.Module):
    """The mean brightness, 64 times."""

    def forward(self, hr):
        return torch.nn.functional.avg_pool2d(hr, 16).mean(1, keepdim=True).repeat(1, 64, 1, 1)


def main() -> int:
    with joined_world() as world:
        torch.manual_seed(world.rank)  # the main process's networks count
        generator = RRDBNet(features=8, blocks=1, growth=4)
        discriminator = UNetDiscriminator(semantic_channels=64, features=16)
        step = TrainStep(
            generator=generator,
            generator_optimizer=torch.optim.SGD(generator.parameters(), lr=0.1, fused=True),
            adversary=Adversary(
                discriminator,
                torch.optim.SGD(discriminator.parameters(), lr=0.1, fused=True),
                GANLoss("vanilla"),
                extractor=Extractor(),
            ),
            weights={"pixel": 1.0, "gan": 1.0},
        )
        synchronize(step, world)
        sums, add_up = [], step._all_reduce
        step._all_reduce = lambda values: sums.append(values) or add_up(values)
        torch.manual_seed(0)
        lr, hr = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 64, 64)
        share = slice(world.rank * 4 // world.size, (world.rank + 1) * 4 // world.size)
        terms = step(Batch(lr[share], hr[share])).terms
        networks = {"generator": generator, "discriminator": discriminator}
        gradients = {
            f"{name}.{key}": parameter.grad.clone()
            for name, net in networks.items()
            for key, parameter in net.named_parameters()
        }
        report = {"gradients": gradients, "terms": terms, "sums": len(sums)}
        step(Batch(lr[share], hr[share]))
        gathered = world.gather({name: net.state_dict() for name, net in networks.items()})
        if world.main:
            torch.save({**report, "gathered": gathered}, sys.argv[1])
    return 0


run(main)
