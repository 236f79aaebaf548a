"""Started by torchrun: one rank finds a mistake in a block in which all must agree."""

import sys

from utils.distributed import join_world
from utils.errors import UserError

world = join_world()
try:
    with world.agree():
        if world.rank == 1:
            raise UserError("rank 1 found a mistake")
except UserError as error:
    print(error)
    sys.exit(2)
finally:
    world.leave()
print("went on")
