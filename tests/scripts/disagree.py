"""Started by torchrun: one rank raises a UserError in a block that succeeds on all ranks or on none."""

from sed_sr.options.cli import run
from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.distributed import joined_world


def main() -> int:
    with joined_world() as world:
        with world.raise_together():
            if world.rank == 1:
                raise UserError("rank 1 found a mistake")
        print("went on")
    return 0


run(main)
