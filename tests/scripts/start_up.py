"""Started by torchrun: prepares a run as train.py does, and counts what each process opens and reads.

start_up.py OUTPUT OPTIONS...: an option file and what --set says.
"""

import json
import sys
from pathlib import Path

from sed_sr.options.cli import run
from sed_sr.options.recipe import Override, load_options
from sed_sr.utils.runtime.distributed import World, joined_world
from sed_sr.utils.train_run import check_synchronized, synchronize
from sed_sr.utils.training.checklist import Checklist
from sed_sr.utils.training.setup import prepare


def read_bytes() -> int:
    """What this process has read, by whichever library."""
    return int(Path("/proc/self/io").read_text().split()[1])


def get_ready(world: World) -> dict[str, int]:
    opened, here = [], str(Path.cwd())

    def note(event: str, arguments: tuple) -> None:
        if event in ("open", "os.listdir", "os.scandir") and Path(str(arguments[0])).absolute().is_relative_to(here):
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    before = read_bytes()
    options = world.from_main(lambda: load_options(sys.argv[2], list(map(Override.parse, sys.argv[3:]))))
    checks = Checklist()
    ready = prepare(options, checks, resume="auto", thorough=False, world=world)
    checks.raise_if_failed()
    synchronize(ready.train_step, world)
    check_synchronized(ready, world)
    return {"opened": len(opened), "bytes": read_bytes() - before}


def main() -> int:
    with joined_world() as world:
        counted = world.gather(get_ready(world))
        if world.main:
            Path(sys.argv[1]).write_text(json.dumps(counted))
    return 0


run(main)
