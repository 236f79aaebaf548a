"""Started by torchrun: one rank finds a mistake in a block in which all must agree."""

from utils.distributed import joined_world
from utils.entry import run
from utils.errors import UserError


def main() -> int:
    with joined_world() as world:
        with world.agree():
            if world.rank == 1:
                raise UserError("rank 1 found a mistake")
        print("went on")
    return 0


run(main)
