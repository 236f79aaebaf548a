"""The batches of a step: read from the options, written to them, and measured if their size is `auto`."""

import torch

from sed_sr.data.build import build_training_pairs
from sed_sr.data.datasets import TrainingSet
from sed_sr.data.loader import BATCHES_AHEAD, worker_count
from sed_sr.models.train_step import TrainStep
from sed_sr.options.schema import Options
from sed_sr.utils.runtime.distributed import World
from sed_sr.utils.runtime.memory import free_bytes
from sed_sr.utils.training.batch_size import Batches, GivenBatches, largest_batch_size


def batches_of(options: Options) -> GivenBatches:
    """What the options say of the batches of a step."""
    return GivenBatches(options.dataloader.batch_size, options.train.accumulate_batches, options.train.total_batch_size)


def with_batches(options: Options, batches: Batches | GivenBatches) -> Options:
    """A copy of the options with these batches."""
    train = {"accumulate_batches": batches.per_step, "total_batch_size": batches.total}
    return options.model_copy(
        update={
            "dataloader": options.dataloader.model_copy(update={"batch_size": batches.size}),
            "train": options.train.model_copy(update=train),
        }
    )


def measure_batch_size(
    options: Options,
    train_step: TrainStep,
    dataset: TrainingSet,
    *,
    device: torch.device,
    world: World,
) -> int:
    """The largest number of pairs that this process can compute at once.

    Raises:
        UserError: not even one pair fits into memory.
    """
    sample, total = dataset[0, 0], options.train.total_batch_size
    # On a CPU, all processes share the memory, also with the batches that the loader has ready.
    on_cpu = device.type == "cpu"
    loaded_batches = worker_count(options.dataloader.num_workers, world.local_size) * BATCHES_AHEAD + 1
    pair_bytes = sum(sample[name].nbytes for name in ("lr", "hr") if name in sample)
    return largest_batch_size(
        train_step,
        build_training_pairs(options, scale=train_step.generator.scale),
        sample,
        most=max(1, len(dataset) // world.size if total is None else total // world.size),
        free_bytes=free_bytes(device) // (world.size if on_cpu else 1),
        waiting_bytes=loaded_batches * pair_bytes if on_cpu else 0,
    )
