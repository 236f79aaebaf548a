"""One process or many: who we are, and the few things that processes do together.

The launcher's environment decides (RANK, WORLD_SIZE, LOCAL_RANK, as torchrun and torch.distributed.launch set them).
Without one there is a single process, and every operation here is trivial.
"""

import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from sed_sr.options.cli import EXIT_USER_ERROR
from sed_sr.options.errors import UserError

Value = TypeVar("Value")

SEPARATE_BYTES = 2**16  # arrays of this size and more are not copied into a pickle
TIMEOUT = timedelta(minutes=30)  # the longest that ranks wait for each other: a slow download, a long validation
NOTICE_AFTER_S = 5.0  # of waiting at the start: then a process says which others are missing
ASK_AGAIN_S = 0.05  # while waiting


@dataclass(frozen=True)
class World:
    """The processes of one run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    # The processes that share the CPU cores this one may use: where no launcher says so (srun), the cores are its own.
    local_size: int = 1

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
    def raise_together(self) -> Iterator[None]:
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

    def share(self, value: Value) -> Value:
        """The main process's `value` on every rank; what the others pass is ignored. The value must be picklable.

        Large arrays in it travel as tensors.
        """
        if self.size == 1:
            return value
        head, arrays = b"", []
        if self.main:

            def keep_small(buffer: pickle.PickleBuffer) -> bool:
                small = buffer.raw().nbytes < SEPARATE_BYTES
                if not small:
                    arrays.append(torch.frombuffer(bytearray(buffer.raw()), dtype=torch.uint8))
                return small

            head = pickle.dumps(value, protocol=5, buffer_callback=keep_small)
        about = [(head, [len(array) for array in arrays])]
        dist.broadcast_object_list(about)
        head, lengths = about[0]
        arrays = arrays or [torch.empty(length, dtype=torch.uint8) for length in lengths]
        self.spread(arrays)
        return value if self.main else pickle.loads(head, buffers=[array.numpy() for array in arrays])

    def share_tensors(self, tree: Value, *, device: torch.device) -> Value:
        """The main process's tensors in plain containers on every rank; they are on `device`, one of each rank."""
        outline = self.share(tree_map_only(Tensor, lambda tensor: tensor.to("meta"), tree) if self.main else None)

        def like(tensor: Tensor) -> Tensor:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

        received = tree if self.main else tree_map_only(Tensor, like, outline)
        self.spread(leaf for leaf in tree_leaves(received) if isinstance(leaf, Tensor))
        return received

    def from_main(self, find: Callable[[], Value]) -> Value:
        """What `find` returns on the main process, on every rank; only the main process calls it.

        A UserError that it raises ends all ranks, as in `agree`.
        """
        with self.raise_together():
            value = find() if self.main else None
        return self.share(value)

    def compare(self, facts: dict[str, Any]) -> None:
        """End all ranks with a UserError that names them, where one of these facts is not the same on all of them."""
        gathered = self.gather(facts)
        values = {what: [found[what] for found in gathered] for what in facts}
        with self.raise_together():
            differing = [f"{what} is {_by_rank(found)}" for what, found in values.items() if len(set(found)) > 1]
            if differing:
                raise UserError(f"the processes of this run differ: {'; '.join(differing)}")

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


def _by_rank(values: list[Any]) -> str:
    """The different values, each with the ranks that have it."""
    ranks = {value: [str(rank) for rank, own in enumerate(values) if own == value] for value in values}
    return " but ".join(f"{value} in process {', '.join(own)}" for value, own in ranks.items())


@contextmanager
def joined_world(local_rank: int | None = None) -> Iterator[World]:
    """The processes that the launcher started, for as long as the block runs.

    Args:
        local_rank: value of `--local-rank`, which old launchers pass instead of setting LOCAL_RANK.

    Raises:
        UserError: another process never joined, has died, or cannot be reached any more.
    """
    world = _launched_world(local_rank)
    try:
        if world.size > 1:
            _join(world)
        yield world
    except RuntimeError as error:
        if world.size == 1 or not _tells_of_a_lost_process(error):
            raise
        raise UserError(
            f"process {world.rank} has lost another one of this run, which ended or cannot be reached; "
            "the reason is in what that one said"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _launched_world(local_rank: int | None) -> World:
    env = os.environ
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return World()
    return World(
        rank=int(env["RANK"]),
        size=int(env["WORLD_SIZE"]),
        local_rank=int(env.get("LOCAL_RANK", local_rank or 0)),
        local_size=int(env.get("LOCAL_WORLD_SIZE", 1)),
    )


def _join(world: World) -> None:
    if torch.cuda.device_count() > world.local_rank:
        torch.cuda.set_device(world.local_rank)  # nccl opens a context on the current device
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = _store_of_this_attempt(world)
    _wait_for_all(store, world)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)


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
    if not kept:
        return _store_of_main_process(world)
    store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
    return dist.PrefixStore(f"attempt_{env['TORCHELASTIC_RESTART_COUNT']}", store)


def _store_of_main_process(world: World) -> dist.TCPStore:
    """The store that the main process serves at MASTER_ADDR and MASTER_PORT.

    It is that of `dist.rendezvous("env://")`, except that the main process does not wait for the others here: it could
    not tell which of them are missing.

    Raises:
        UserError: an address is not set, the main process cannot serve it, or nothing answers there.
    """
    env = os.environ
    if not env.get("MASTER_ADDR") or not env.get("MASTER_PORT", "").isdecimal():
        raise UserError(
            "RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT, the address of process 0; torchrun sets "
            "all four"
        )
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    if not world.main:
        # TCPStore would wait too, silently, and print a page of C++ frames in the end
        _wait(world, lambda: _answers(host, port), missing=lambda: [0], where=f" at {host}:{port}")
    try:
        return dist.TCPStore(
            host,
            port,
            is_master=world.main,
            timeout=TIMEOUT,
            wait_for_workers=False,
            multi_tenant=True,
            use_libuv=env.get("USE_LIBUV", "1") == "1",
        )
    except dist.DistNetworkError as error:
        if not world.main:
            raise
        reason = str(error).partition("\n")[0]
        raise UserError(f"process 0 cannot serve {host}:{port} (MASTER_ADDR and MASTER_PORT): {reason}") from error


def _answers(host: str, port: int) -> bool:
    """Whether a server accepts connections; if not, after a moment."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        time.sleep(ASK_AGAIN_S)
        return False
    return True


def _wait_for_all(store: dist.Store, world: World) -> None:
    """Wait until every process of the run has said in the store that it is here."""
    keys = [f"joined/{rank}" for rank in range(world.size)]
    store.set(keys[world.rank], "")
    awaited = keys.copy()

    def all_are_here() -> bool:  # store.wait would print two lines of C++ whenever its time is up
        while awaited and store.check(awaited[-1:]):
            awaited.pop()
        if awaited:
            time.sleep(ASK_AGAIN_S)
        return not awaited

    def missing() -> list[int]:
        return [rank for rank, key in enumerate(keys) if not store.check([key])]

    _wait(world, all_are_here, missing=missing, tells=lambda: store.add("told", 1) == 1)


def _wait(
    world: World,
    done: Callable[[], bool],
    *,
    missing: Callable[[], list[int]],
    tells: Callable[[], bool] = lambda: True,
    where: str = "",
) -> None:
    """Wait at the start for other processes; after NOTICE_AFTER_S, say once on stderr for which.

    Args:
        done: whether they are here; called again and again, takes a moment to say no.
        missing: their ranks.
        tells: whether this process is the one to say so.
        where: they are expected.

    Raises:
        UserError: they are still missing after TIMEOUT.
    """
    start_s, notice_s, longest_s = time.monotonic(), NOTICE_AFTER_S, TIMEOUT.total_seconds()
    while not done():
        waited_s = time.monotonic() - start_s
        if waited_s < notice_s:
            continue
        ranks = missing()
        if not ranks:  # they came just now
            continue
        sentence = (
            f"process {world.rank} has waited {_in_words(waited_s)} for {_processes(ranks)}{where}, which "
            f"{'has' if len(ranks) == 1 else 'have'} not joined this run of {world.size} processes"
        )
        if waited_s >= longest_s:
            raise UserError(f"{sentence}; look at what they printed, and whether WORLD_SIZE is right")
        if tells():
            print(f"{sentence}; it goes on waiting, for {_in_words(longest_s)} in all", file=sys.stderr, flush=True)
        notice_s = longest_s


def _processes(ranks: list[int]) -> str:
    shown = [str(rank) for rank in ranks[:8]]
    more = [f"{len(ranks) - len(shown)} more"] if len(ranks) > len(shown) else []
    *others, last = shown + more
    return f"processes {', '.join(others)} and {last}" if others else f"process {last}"


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"


def _tells_of_a_lost_process(error: RuntimeError) -> bool:
    # gloo has no class of its own for it
    return isinstance(error, dist.DistError) or ("gloo" in str(error) and "onnection" in str(error))
