"""The processes of a run and what they do together.

The environment says which process this is (RANK, WORLD_SIZE, LOCAL_RANK, as torchrun and torch.distributed.launch set
them). Without these variables there is a single process, and no operation here communicates.
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

MIN_TENSOR_BYTES = 2**16  # arrays of at least this size are sent as tensors, not in the pickle
TIMEOUT = timedelta(minutes=30)  # of ranks that wait for each other: for a slow download, a long validation
NOTICE_AFTER_S = 5.0  # of waiting at the start, a process reports which others are missing
POLL_S = 0.05  # between two checks while waiting


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
        """Whether this is rank 0, which alone writes files and prints."""
        return self.rank == 0

    def device(self, choice: str) -> torch.device:
        """The device of this process for `auto`, `cpu` or `cuda`. TF32 convolutions are switched off on it.

        Raises:
            UserError: there is no such device for this process.
        """
        count = torch.cuda.device_count()
        if choice == "cpu" or (choice == "auto" and count == 0):
            return torch.device("cpu")
        if count == 0:
            raise UserError("device is cuda, but PyTorch sees no CUDA device; set device: auto or cpu")
        if self.local_rank >= count:
            raise UserError(
                f"process {self.local_rank} of this machine has no GPU of its own: {count} visible; start at most "
                f"{count} processes here (--nproc_per_node={count}), or set device: cpu"
            )
        torch.cuda.set_device(self.local_rank)
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's default is True
        return torch.device("cuda", self.local_rank)

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """A block that succeeds on every rank or fails on every rank.

        If a UserError is raised on any rank, all ranks end, so that none waits for one that has failed: the main
        process raises the messages of all ranks, without duplicates, and the others exit silently. The block itself
        must not communicate.
        """
        error = None
        try:
            yield
        except UserError as raised:
            error = raised
        messages = dict.fromkeys(line for error in self.gather(error) if error for line in str(error).splitlines())
        if messages and not self.main:
            raise SystemExit(EXIT_USER_ERROR)
        if messages:
            raise UserError("\n".join(messages)) from error

    def broadcast(self, value: Value) -> Value:
        """Return the main process's `value` on every rank; those of other ranks are ignored. It must be picklable.

        Large arrays in it are sent as tensors: `broadcast_object_list` alone would copy them several times.
        """
        if self.size == 1:
            return value
        head, arrays = b"", []
        if self.main:

            def keep_in_pickle(buffer: pickle.PickleBuffer) -> bool:
                small = buffer.raw().nbytes < MIN_TENSOR_BYTES
                if not small:
                    arrays.append(torch.frombuffer(bytearray(buffer.raw()), dtype=torch.uint8))
                return small

            head = pickle.dumps(value, protocol=5, buffer_callback=keep_in_pickle)
        header = [(head, [len(array) for array in arrays])]
        dist.broadcast_object_list(header)
        head, lengths = header[0]
        arrays = arrays or [torch.empty(length, dtype=torch.uint8) for length in lengths]
        self.broadcast_into(arrays)
        return value if self.main else pickle.loads(head, buffers=[array.numpy() for array in arrays])

    def broadcast_tensors(self, tree: Value, *, device: torch.device) -> Value:
        """Return the main process's tensors, in their plain containers, on every rank.

        Args:
            device: of the tensors, on every rank its own.
        """
        outline = self.broadcast(tree_map_only(Tensor, lambda tensor: tensor.to("meta"), tree) if self.main else None)

        def empty_like(tensor: Tensor) -> Tensor:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

        received = tree if self.main else tree_map_only(Tensor, empty_like, outline)
        self.broadcast_into(leaf for leaf in tree_leaves(received) if isinstance(leaf, Tensor))
        return received

    def broadcast_into(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors on every rank with those of the main process, which have the same shapes."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def from_main(self, function: Callable[[], Value]) -> Value:
        """Call `function` on the main process only, and return its result on every rank.

        A UserError that it raises ends all ranks, as in `raise_together`.
        """
        value: Any = None  # of the other processes, which broadcast ignores
        with self.raise_together():
            if self.main:
                value = function()
        return self.broadcast(value)

    def check_equal(self, values: dict[str, Any]) -> None:
        """Raise a UserError on all ranks where one of the named values is not the same on all of them."""
        gathered = self.gather(values)
        by_name = {name: [each[name] for each in gathered] for name in values}
        with self.raise_together():
            differing = [f"{name} is {_by_rank(found)}" for name, found in by_name.items() if len(set(found)) > 1]
            if differing:
                raise UserError(f"the processes of this run differ: {'; '.join(differing)}")

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of ranks, on every rank. They must be picklable."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Means over the ranks of numbers that every rank has under the same names; one transfer for all of them."""
        total = self.all_reduce(torch.tensor(list(values.values()), dtype=torch.double))
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether `here` is true on any rank. The transfer is between CPUs and does not wait for a GPU."""
        return bool(self.all_reduce(torch.tensor(int(here))))


def _by_rank(values: list[Any]) -> str:
    """Each distinct value with the ranks that have it."""
    ranks = {value: [str(rank) for rank, own in enumerate(values) if own == value] for value in values}
    return " but ".join(f"{value} in process {', '.join(own)}" for value, own in ranks.items())


@contextmanager
def joined_world(local_rank: int | None = None) -> Iterator[World]:
    """The processes that the launcher started, connected while the block runs.

    Args:
        local_rank: value of `--local-rank`, which old launchers pass instead of setting LOCAL_RANK.

    Raises:
        UserError: another process has not joined, or the connection to it is lost.
    """
    world = _launched_world(local_rank)
    try:
        if world.size > 1:
            _join(world)
        yield world
    except RuntimeError as error:
        if world.size == 1 or not _is_connection_loss(error):
            raise
        raise UserError(
            f"process {world.rank} has lost the connection to another process of this run, which has ended or cannot "
            "be reached; see the output of that process for the reason"
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
    """The key-value store through which the processes find each other.

    By default torchrun (PyTorch 2.15) keeps one store over all its restarts. Processes of a later attempt would find
    the addresses of dead processes in it and wait for them, so that each attempt gets a prefix of its own.
    """
    env = os.environ
    kept = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if kept and int(env.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0 and env.get("GROUP_WORLD_SIZE") != "1":
        # the launchers of several nodes do not count the attempts alike
        raise UserError(
            "torchrun --max-restarts on several nodes needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment on "
            "each of them; otherwise restarted processes would wait for those that have died"
        )
    if not kept:
        return _store_of_main_process(world)
    store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
    return dist.PrefixStore(f"attempt_{env['TORCHELASTIC_RESTART_COUNT']}", store)


def _store_of_main_process(world: World) -> dist.TCPStore:
    """The store that the main process serves at MASTER_ADDR and MASTER_PORT.

    It is that of `dist.rendezvous("env://")`, except that the main process does not wait in it for the other ones: it
    could not report which of them are missing.

    Raises:
        UserError: the address is not set, the main process cannot serve it, or nothing answers there.
    """
    env = os.environ
    if not env.get("MASTER_ADDR") or not env.get("MASTER_PORT", "").isdecimal():
        raise UserError(
            "RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT, the address of process 0; torchrun sets "
            "all four"
        )
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    if not world.main:
        # TCPStore would wait without a message, and print a page of C++ frames at its timeout
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
    """Whether a server accepts connections. Where none does, this takes POLL_S."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        time.sleep(POLL_S)
        return False
    return True


def _wait_for_all(store: dist.Store, world: World) -> None:
    """Wait until every process of the run has set its key in the store."""
    keys = [f"joined/{rank}" for rank in range(world.size)]
    store.set(keys[world.rank], "")
    awaited = keys.copy()

    def all_joined() -> bool:  # store.wait would print two lines of C++ at each timeout
        while awaited and store.check(awaited[-1:]):
            awaited.pop()
        if awaited:
            time.sleep(POLL_S)
        return not awaited

    def missing() -> list[int]:
        return [rank for rank, key in enumerate(keys) if not store.check([key])]

    _wait(world, all_joined, missing=missing, reports=lambda: store.add("reported", 1) == 1)


def _wait(
    world: World,
    done: Callable[[], bool],
    *,
    missing: Callable[[], list[int]],
    reports: Callable[[], bool] = lambda: True,
    where: str = "",
) -> None:
    """Wait at the start for other processes; after NOTICE_AFTER_S, print once to stderr which are missing.

    Args:
        done: whether they are here; called repeatedly, takes POLL_S to return False.
        missing: their ranks.
        reports: whether this process is the one that prints.
        where: the address at which they are expected.

    Raises:
        UserError: they are still missing after TIMEOUT.
    """
    start_s, notice_s, longest_s = time.monotonic(), NOTICE_AFTER_S, TIMEOUT.total_seconds()
    while not done():
        waited_s = time.monotonic() - start_s
        if waited_s < notice_s:
            continue
        ranks = missing()
        if not ranks:  # the last one has just joined
            continue
        sentence = (
            f"process {world.rank} has waited {_format_duration(waited_s)} for {_processes(ranks)}{where}, which "
            f"{'has' if len(ranks) == 1 else 'have'} not joined this run of {world.size} processes"
        )
        if waited_s >= longest_s:
            raise UserError(f"{sentence}; check their output and WORLD_SIZE")
        if reports():
            print(
                f"{sentence}; it keeps waiting, up to {_format_duration(longest_s)} in total",
                file=sys.stderr,
                flush=True,
            )
        notice_s = longest_s


def _processes(ranks: list[int]) -> str:
    shown = [str(rank) for rank in ranks[:8]]
    more = [f"{len(ranks) - len(shown)} more"] if len(ranks) > len(shown) else []
    *others, last = shown + more
    return f"processes {', '.join(others)} and {last}" if others else f"process {last}"


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"


def _is_connection_loss(error: RuntimeError) -> bool:
    # gloo raises a plain RuntimeError
    return isinstance(error, dist.DistError) or ("gloo" in str(error) and "onnection" in str(error))
