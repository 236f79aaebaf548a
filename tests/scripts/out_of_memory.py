"""Upscale an image without a limit on memory and within one; print what was noted and the largest difference.

`python out_of_memory.py MIB`: how much more address space the second time may take than the process has by then.
"""

import resource
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sed_sr.models.generator import Generator
from sed_sr.utils.evaluation.upscaler import Upscaler

FEATURES = 64


class Network(Generator):
    """Nearest neighbour plus a little of a network that takes 256 bytes of each SR pixel."""

    scale = 4

    def __init__(self):
        super().__init__()
        self.nearest = nn.Upsample(scale_factor=self.scale)
        self.head, self.tail = nn.Conv2d(3, FEATURES, 3, padding=1), nn.Conv2d(FEATURES, 3, 3, padding=1)

    def forward(self, lr):
        return self.nearest(lr) + 0.1 * self.tail(self.head(self.nearest(lr)).relu())


def address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


torch.manual_seed(0)
lr = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
notes = []
upscale = Upscaler(Network(), torch.device("cpu"), tile_px=256)  # more than the limit leaves room for
(whole,) = upscale([lr], notes.append)
assert not notes
limit_bytes = address_space_bytes() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
(limited,) = upscale([lr], notes.append)
print(*notes, sep="\n")
print(np.abs(whole.astype(int) - limited).max())
