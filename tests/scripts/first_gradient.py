"""Started by torchrun or alone: takes a step on this rank's share of a fixed batch of 4 and saves the gradients.

Then another one, after which the networks of the ranks are compared.

first_gradient.py OUTPUT
"""

import sys
from functools import partial

import torch

from models.discriminators import UNetDiscriminator
from models.losses import GANLoss
from models.rrdb import RRDBNet
from models.train_step import Batch, TrainStep
from utils.distributed import joined_world
from utils.entry import run


def main() -> int:
    with joined_world() as world:
        torch.manual_seed(0)
        generator = RRDBNet(features=8, blocks=1, growth=4)
        discriminator = UNetDiscriminator(semantic_channels=64, features=16)
        step = TrainStep(
            generator=generator,
            generator_optimizer=torch.optim.SGD(generator.parameters(), lr=0.1),
            discriminator=discriminator,
            discriminator_optimizer=torch.optim.SGD(discriminator.parameters(), lr=0.1),
            extractor=lambda hr: torch.nn.functional.avg_pool2d(hr, 16).mean(1, keepdim=True).repeat(1, 64, 1, 1),
            adversarial=GANLoss("vanilla"),
            weights={"pixel": 1.0, "gan": 1.0},
        )
        step.distribute(wrap=partial(world.wrap, device=torch.device("cpu")), add_up=world.add_up)
        lr, hr = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 64, 64)
        share = slice(world.rank * 4 // world.size, (world.rank + 1) * 4 // world.size)
        terms = world.mean(step(Batch(lr[share], hr[share])).terms)
        networks = {"generator": generator, "discriminator": discriminator}
        gradients = {
            f"{name}.{key}": parameter.grad.clone()
            for name, net in networks.items()
            for key, parameter in net.named_parameters()
        }
        step(Batch(lr[share], hr[share]))
        gathered = world.gather({name: net.state_dict() for name, net in networks.items()})
        storages = {parameter.grad.untyped_storage().data_ptr() for parameter in generator.parameters()}
        if world.main:
            report = {"gradients": gradients, "terms": terms, "gathered": gathered, "storages": len(storages)}
            torch.save(report, sys.argv[1])
    return 0


run(main)
