"""Started by torchrun: the ranks broadcast values and compare others, of which one differs."""

import numpy as np
import torch

from sed_sr.options.cli import run
from sed_sr.utils.runtime.distributed import joined_world


def main() -> int:
    with joined_world() as world:
        large, nothing = np.arange(10**6), np.empty(0)
        value = {"large": large, "nothing": nothing, "text": "x", "rank": world.rank}
        shared = world.broadcast(value if world.main else None)
        assert shared["rank"] == 0
        assert shared["text"] == "x"
        assert np.array_equal(shared["large"], large)
        assert len(shared["nothing"]) == 0
        weight = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
        tree = {"step": 7, "moments": [weight, torch.tensor(3)]} if world.main else {"step": 0}
        tree = world.broadcast_tensors(tree, device=torch.device("cpu"))
        assert tree["step"] == 7
        assert tree["moments"][0].stride() == weight.stride()
        assert torch.equal(tree["moments"][0], weight)
        assert tree["moments"][1] == 3
        world.check_equal({"the same": 1})
        print("the same is the same")
        world.check_equal({"the weather": "fine", "the step": 5 if world.rank == 0 else 3})
        print("went on")
    return 0


run(main)
