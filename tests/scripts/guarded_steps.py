"""Started by torchrun: takes steps of which one is broken on the last rank, and one step on several batches.

guarded_steps.py OUTPUT loss|gradient
"""

import copy
import sys

import torch

from sed_sr.data.batches import Batch
from sed_sr.models.discriminators import PatchDiscriminator
from sed_sr.models.losses.gan import GANLoss
from sed_sr.models.rrdb import RRDBNet
from sed_sr.models.train_step import Adversary, TrainStep
from sed_sr.options.cli import run
from sed_sr.utils.runtime.distributed import World, joined_world
from sed_sr.utils.train_run import synchronize
from tests.conftest import same


def make_step(world: World, **more) -> TrainStep:
    torch.manual_seed(0)
    generator = RRDBNet(features=8, blocks=1, growth=4)
    discriminator = PatchDiscriminator(semantic_channels=None, features=8)
    step = TrainStep(
        generator=generator,
        generator_optimizer=torch.optim.Adam(generator.parameters(), fused=True),
        adversary=Adversary(
            discriminator, torch.optim.Adam(discriminator.parameters(), fused=True), GANLoss("vanilla")
        ),
        weights={"pixel": 1.0, "gan": 0.1},
        ema_decay=0.9,
        **more,
    )
    synchronize(step, world)
    return step


def updated(step: TrainStep) -> dict:
    """All that an update changes; the power iteration of D's spectral norm changes with every forward pass of D."""
    state = copy.deepcopy(step.state_dict())
    discriminator = {name: value for name, value in state["discriminator"].items() if "._" not in name}
    return {**state, "discriminator": discriminator, "step": 0}


def main() -> int:
    with joined_world() as world:
        step = make_step(world)
        lr, hr = torch.rand(2, 1, 3, 8, 8)[world.rank], torch.rand(2, 1, 3, 32, 32)[world.rank]
        step(Batch(lr, hr))
        before = updated(step)
        poison = []
        if world.rank == 1 and sys.argv[2] == "loss":
            poison = [step.generator.register_forward_hook(lambda _, inputs, output: output * float("nan"))]
        elif world.rank == 1:
            weight = step.generator.conv_last.weight
            poison = [weight.register_hook(lambda gradient: gradient * float("inf"))]
        outcome = step(Batch(lr, hr))
        kept = same(before, updated(step))
        for handle in poison:
            handle.remove()
        step(Batch(lr, hr))
        moves_again = not same(before, updated(step))

        sums, thrice = [], make_step(world, batches_per_step=3)
        add_up = thrice._all_reduce
        thrice._all_reduce = lambda values: sums.append(values) or add_up(values)
        thrice(*[Batch(lr, hr)] * 3)
        report = {
            "broken": list(outcome.broken),
            "broken_here": list(outcome.broken_here),
            "kept": kept,
            "moves_again": moves_again,
            "sums_of_three_batches": len(sums),
        }
        gathered = world.gather(report)
        if world.main:
            torch.save(gathered, sys.argv[1])
    return 0


run(main)
