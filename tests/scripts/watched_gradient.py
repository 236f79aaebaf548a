"""Started by torchrun: the averaged gradient of a generator, with and without a look at its terms' shares before.

watched_gradient.py OUTPUT
"""

import sys

import torch

from models.diagnostics import gradient_shares
from models.discriminators import PatchDiscriminator
from models.losses import GANLoss
from models.rrdb import RRDBNet
from utils.distributed import joined_world
from utils.entry import run


def main() -> int:
    with joined_world() as world:
        torch.manual_seed(0)
        generator = RRDBNet(features=8, blocks=1, growth=4)
        discriminator = PatchDiscriminator(semantic_channels=None, features=4).requires_grad_(False).eval()
        shared = world.wrap(generator, device=torch.device("cpu"))
        lr, hr = torch.rand(2, 1, 3, 8, 8)[world.rank], torch.rand(2, 1, 3, 32, 32)[world.rank]
        gradients = {}
        for watched in (False, True):
            generator.zero_grad(set_to_none=True)
            sr = shared(lr)
            terms = {"pixel": (sr - hr).abs().mean(), "gan": 0.1 * GANLoss("vanilla").generator(discriminator(sr))}
            if watched:
                gradient_shares(terms, generator.parameters())
            sum(terms.values()).backward()
            gradients[watched] = [parameter.grad.clone() for parameter in generator.parameters()]
        of_ranks = world.gather(gradients)
        if world.main:
            torch.save(of_ranks, sys.argv[1])
    return 0


run(main)
