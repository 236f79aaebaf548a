"""Upscaling by a generator, in limited memory, or by MATLAB's bicubic interpolation."""

import copy
import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from sed_sr.data.imresize import imresize
from sed_sr.data.tensors import to_float, to_integers
from sed_sr.models.cuda_graph import CudaRecorder, GraphedFunction, Recorder
from sed_sr.models.generator import Generator
from sed_sr.models.precision import AUTOCAST_DTYPE, keep_in_autocast_type
from sed_sr.options.errors import UserError
from sed_sr.utils.evaluation.tiles import TILE_MULTIPLE_PX, halved, spans, upscale_in_tiles
from sed_sr.utils.runtime.memory import TensorBytes, free_bytes, unless_out_of_memory

Note = Callable[[str], None]  # receives messages for the user
# LR images of one size and type, (H, W, 3) uint8 or uint16 RGB each -> as many SR images, (scale * H, scale * W, 3) of
# the same type each.
Upscale = Callable[[list[np.ndarray], Note], list[np.ndarray]]

MIN_TILE_PX = 64
MAX_TILE_PX = 512  # if determined automatically: twice the side takes 4 times the memory and saves 7 % of the time
PROBE_PX = 32
MEMORY_SHARE = 0.5  # of the free memory; the rest is for the workspace of kernels and for other programs
BICUBIC_TILE_PX, BICUBIC_OVERLAP_PX = 256, 8  # the kernel reaches 2 pixels


class OutOfMemory(UserError):
    """An image cannot be upscaled or scored, because memory does not suffice."""


class Upscaler:
    """Upscaling by a generator, an `Upscale`.

    Small images are upscaled whole, several of them in a batch if they are passed together; larger ones in tiles, one
    at a time. If memory does not suffice, tiles of half the side are tried, and used for all later images.

    On a GPU, the generator runs in channels_last, and is recorded as a CUDA graph for each input shape that recurs.

    Args:
        generator: on `device`, in float32. It is put into evaluation mode. On a GPU, bf16 and fp16 use a copy of it.
        precision: fp32, or bf16 or fp16 by autocast.
        tile_px: side of the largest square of LR pixels that is passed to the generator at once, a multiple of 8, at
            least 64; None: determined from the free memory and from what the generator takes.
        self_ensemble: average over the 8 flips and rotations of each tile (EDSR+; Lim et al. 2017, section 4.3).
        new_recorder: makes recorders of graphs; None: a CudaRecorder on a GPU, and no graphs on a CPU.

    Raises:
        UserError: fp16 on a CPU, or a precision that the generator does not support.
        OutOfMemory (when called): memory does not suffice for the smallest tiles, or for the result.
    """

    def __init__(
        self,
        generator: Generator,
        device: torch.device,
        *,
        precision: str = "fp32",
        tile_px: int | None = None,
        self_ensemble: bool = False,
        new_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        if precision == "fp16" and device.type == "cpu":
            raise UserError("precision fp16 needs a GPU; use bf16 or fp32 on a CPU")
        if precision not in generator.precisions:
            raise UserError(f"precision {precision} is not supported by {generator.about}; use fp32")
        if new_recorder is None and device.type == "cuda":
            new_recorder = CudaRecorder
        if new_recorder is not None:
            if AUTOCAST_DTYPE[precision] is not None:  # otherwise every call would cast all weights
                generator = copy.deepcopy(generator)
                keep_in_autocast_type(generator, precision)
            generator.to(memory_format=torch.channels_last)
        self.generator, self.device = generator, device
        dtype = AUTOCAST_DTYPE[precision]
        self._forward = partial(
            _super_resolve,
            partial(self_ensembled, generator) if self_ensemble else generator,
            autocast=partial(torch.autocast, device.type, dtype=dtype, enabled=dtype is not None),
        )
        self._new_recorder = new_recorder
        self._warnings: list[str] = []  # of failed recordings
        self._forget_graphs()
        self._tile_px = tile_px  # given, or the size that fitted after running out of memory
        self._bytes_per_px: float | None = None  # per LR pixel; measured when needed

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray], note: Note) -> list[np.ndarray]:
        self.generator.eval()
        result_bytes = sum(image.nbytes for image in images) * self.generator.scale**2
        free = free_bytes(torch.device("cpu"))
        if result_bytes > free:
            raise OutOfMemory(
                f"the result takes {result_bytes / 1e9:.3g} GB of memory, but only {free / 1e9:.3g} GB are free"
            )
        first_px = self._tile_px or self._find_tile_px(images, result_bytes)
        for tile_px in _tile_sizes(first_px, images):
            results = unless_out_of_memory(partial(self._upscale, images, tile_px))
            while self._warnings:
                note(self._warnings.pop())
            if results is not None:
                if tile_px != first_px:
                    note(f"out of memory on {self.device}: upscaling continues in tiles of {tile_px} px")
                    self._tile_px = tile_px
                return results
            self._forget_graphs()
        raise OutOfMemory(f"out of memory on {self.device}, even in tiles of {MIN_TILE_PX} px")

    def _forget_graphs(self) -> None:
        """Free the memory of recorded graphs; recurring shapes are recorded again."""
        self._graphed_forward = self._forward
        if self._new_recorder is not None:
            # It has no reference to this object: a cycle would delay the release of its memory.
            self._graphed_forward = GraphedFunction(
                self._forward, name="upscaling", recorder=self._new_recorder(), warn=self._warnings.append
            )

    def _upscale(self, images: list[np.ndarray], tile_px: int) -> list[np.ndarray]:
        """Upscale with at most `tile_px` squared LR pixels in the generator at once."""
        height, width = images[0].shape[:2]
        batch_size = tile_px**2 // (height * width)
        if batch_size:
            groups = [np.stack(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
            dtype = torch.from_numpy(groups[0]).dtype
            return [sr for group in groups for sr in to_integers(self._compute(group), dtype).cpu().numpy()]
        upscale = partial(upscale_in_tiles, self._upscale_tile, scale=self.generator.scale, tile_px=tile_px)
        return [sr for image in images for sr in upscale([image])]

    def _upscale_tile(self, lr: np.ndarray) -> Tensor:
        """(N, h, w, 3) uint8 or uint16 -> (N, scale * h, scale * w, 3) float32 on the CPU."""
        return self._compute(lr).cpu()

    def _compute(self, lr: np.ndarray) -> Tensor:
        """(N, h, w, 3) uint8 or uint16 -> (N, scale * h, scale * w, 3) float32 on the device, valid until the next."""
        # After recording a graph in inference mode, older PyTorch cannot record a training step (pytorch#166792).
        with torch.inference_mode(False):
            return self._graphed_forward(torch.from_numpy(lr).to(self.device))

    def _find_tile_px(self, images: list[np.ndarray], result_bytes: int) -> int:
        """The largest tile that should fit into memory, from the memory that the generator takes for a small one."""
        height, width = images[0].shape[:2]
        if len(images) * height * width <= MIN_TILE_PX**2:
            return MIN_TILE_PX
        if self._bytes_per_px is None:
            self._bytes_per_px = unless_out_of_memory(self._measure_bytes_per_px)
            if self._bytes_per_px is None:
                return MIN_TILE_PX
        free = self._free_gpu_bytes if self.device.type == "cuda" else free_bytes(self.device) - result_bytes
        side_px = math.isqrt(max(0, int(MEMORY_SHARE * free / self._bytes_per_px)))
        side_px = max(side_px // TILE_MULTIPLE_PX * TILE_MULTIPLE_PX, MIN_TILE_PX)
        return side_px if self.generator.prefers_whole_images else min(side_px, MAX_TILE_PX)

    @cached_property
    def _free_gpu_bytes(self) -> int:
        """Determined once: graphs take memory, and tiles of another size would have to be recorded again."""
        return free_bytes(self.device)

    def _measure_bytes_per_px(self) -> float:
        with TensorBytes() as tensors:
            self._forward(torch.zeros(1, PROBE_PX, PROBE_PX, 3, dtype=torch.uint8, device=self.device))
        return tensors.peak / PROBE_PX**2


@torch.inference_mode()
def _super_resolve(
    generator: Callable[[Tensor], Tensor], lr: Tensor, *, autocast: Callable[[], torch.autocast]
) -> Tensor:
    """(N, h, w, 3) uint8 or uint16 -> (N, scale * h, scale * w, 3) float32."""
    # A channels_last view as (N, 3, h, w), the layout in which convolutions are fastest.
    images = to_float(lr.permute(0, 3, 1, 2))
    with autocast():
        sr = generator(images)
    return sr.permute(0, 2, 3, 1).float()


def _tile_sizes(first_px: int, images: list[np.ndarray]) -> Iterator[int]:
    """The tile sizes to try: `first_px`, then repeatedly half of the size that was actually used."""
    yield first_px
    height, width = images[0].shape[:2]
    tile_px = min(first_px, math.isqrt(len(images) * height * width))
    while tile_px > MIN_TILE_PX:
        tile_px = max(halved(tile_px), MIN_TILE_PX)
        yield tile_px


def self_ensembled(generator: Callable[[Tensor], Tensor], lr: Tensor) -> Tensor:
    """The mean of the results for the 8 flips and rotations of images, each transformed back; in float32.

    (N, 3, H, W) -> (N, 3, scale * H, scale * W). Source: EDSR+ (Lim et al. 2017, section 4.3).
    """
    total = torch.zeros((), device=lr.device)
    for turns in range(4):
        for flips in ((), (3,)):
            sr = generator(lr.rot90(turns, (2, 3)).flip(flips))
            total = total + sr.float().flip(flips).rot90(-turns, (2, 3))
    return total / 8


def bicubic(scale: int) -> Upscale:
    """MATLAB's bicubic interpolation, in tiles to limit the memory."""
    return lambda images, note: [_bicubic(image, scale) for image in images]


def _bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    height, width = lr.shape[:2]
    sr = np.empty((scale * height, scale * width, 3), lr.dtype)
    for row in spans(height, BICUBIC_TILE_PX, BICUBIC_OVERLAP_PX):
        for column in spans(width, BICUBIC_TILE_PX, BICUBIC_OVERLAP_PX):
            tile = imresize(lr[row.start : row.stop, column.start : column.stop], scale=scale)
            tile = tile[scale * (row.first - row.start) :, scale * (column.first - column.start) :]
            own = sr[scale * row.first : scale * row.last, scale * column.first : scale * column.last]
            own[:] = tile[: own.shape[0], : own.shape[1]]
    return sr
