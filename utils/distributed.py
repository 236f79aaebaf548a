"""One process or many: who we are, and the few things that processes do together.

The launcher's environment decides (RANK, WORLD_SIZE, LOCAL_RANK, as torchrun and torch.distributed.launch set them).
Without one there is a single process, and every operation here is trivial.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from utils.entry import EXIT_USER_ERROR
from utils.errors import UserError

TIMEOUT = timedelta(minutes=30)  # the longest that ranks wait for each other: a slow download, a long validation


@dataclass(frozen=True)
class World:
    """The processes of one run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this process writes the run's files and speaks to the terminal."""
        return self.rank == 0

    def device(self, choice: str) -> torch.device:
        """The device of this process for `auto`, `cpu` or `cuda`, on which float32 is float32.

        Raises UserError where there is none for it.
        """
        count = torch.cuda.device_count()
        if choice == "cpu" or (choice == "auto" and count == 0):
            return torch.device("cpu")
        if count == 0:
            raise UserError("device: cuda was asked for, but PyTorch sees no CUDA device; take device: auto or cpu")
        if self.local_rank >= count:
            raise UserError(
                f"process {self.local_rank} of this machine has no GPU of its own: {count} visible; start at most "
                f"{count} processes here (--nproc_per_node={count}), or set device: cpu"
            )
        torch.cuda.set_device(self.local_rank)
        torch.backends.cudnn.allow_tf32 = False  # cuDNN's convolutions would use TF32 unless told not to
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def agree(self) -> Iterator[None]:
        """A block that succeeds on every rank or on none.

        A UserError on any rank ends all of them, so that no rank waits for one that has given up: the main process
        raises what all ranks found, each mistake once, and the others leave silently. The block itself must not wait
        for other ranks.
        """
        error = None
        try:
            yield
        except UserError as raised:
            error = raised
        sentences = dict.fromkeys(line for error in self.gather(error) if error for line in str(error).splitlines())
        if sentences and not self.main:
            raise SystemExit(EXIT_USER_ERROR)
        if sentences:
            raise UserError("\n".join(sentences)) from error

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in the order of ranks, on every rank. The value must be picklable."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the ranks of numbers that every rank has under the same names; one transfer for all of them."""
        total = self.add_up(torch.tensor(list(values.values()), dtype=torch.double))
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over the ranks of tensors of one shape, on the device where they are; in their place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, here: bool) -> bool:
        """Whether something is so on some rank. No GPU is waited for."""
        return bool(self.add_up(torch.tensor(int(here))))

    def spread(self, values: Iterable[Tensor]) -> None:
        """Copy the main process's tensors to those of all others, which have the same shapes."""
        if self.size > 1:
            for value in values:
                dist.broadcast(value.detach(), src=0)


@contextmanager
def joined_world(local_rank: int | None = None) -> Iterator[World]:
    """The processes that the launcher started, for as long as the block runs.

    Args:
        local_rank: value of `--local-rank`, which old launchers pass instead of setting LOCAL_RANK.

    Raises:
        UserError: another process has died, or cannot be reached any more.
    """
    world = _join(local_rank)
    try:
        yield world
    except RuntimeError as error:
        if world.size == 1 or not _tells_of_a_lost_process(error):
            raise
        raise UserError(
            f"process {world.rank} has lost another one of this run, which ended or cannot be reached; "
            "the reason is in what that one said"
        ) from error
    finally:
        if world.size > 1:
            dist.destroy_process_group()


def _join(local_rank: int | None) -> World:
    env = os.environ
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return World()
    world = World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", local_rank or 0)))
    if world.size > 1:
        if torch.cuda.device_count() > world.local_rank:
            torch.cuda.set_device(world.local_rank)  # nccl opens a context on the current device
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = _store_of_this_attempt(world)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    return world


def _store_of_this_attempt(world: World) -> dist.Store:
    """Where the processes find each other.

    torchrun keeps one store over all its restarts (PyTorch 2.15) unless it is told not to. In that one, the processes
    of a later attempt would find the addresses of those that have died, and wait for them.
    """
    env = os.environ
    kept = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept and int(env.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0 and env.get("GROUP_WORLD_SIZE") != "1":
        # the launchers of several nodes count the attempts differently
        raise UserError(
            "torchrun --max-restarts on several nodes needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment on "
            "each of them; otherwise the processes that it starts again would wait for those that have died"
        )
    store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
    return dist.PrefixStore(f"attempt_{env['TORCHELASTIC_RESTART_COUNT']}", store) if kept else store


def _tells_of_a_lost_process(error: RuntimeError) -> bool:
    # gloo has no class of its own for it
    return isinstance(error, dist.DistError) or ("gloo" in str(error) and "onnection" in str(error))
