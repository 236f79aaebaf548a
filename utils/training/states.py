"""What a save consists of, and the files that it writes."""

import time
from collections.abc import Iterator
from typing import Any

from sed_sr.data.files import link_file
from sed_sr.models.train_step import TrainStep
from sed_sr.options.schema import Options
from sed_sr.utils.training.run_folder import RunFolder
from sed_sr.utils.training.run_log import SilentLog
from sed_sr.utils.weights import checkpoint

STATE_ONLY = ("train_step", "loop")  # entries of a training state that files of generator weights do not have


def training_state(train_step: TrainStep, loop: dict[str, Any], options: Options) -> dict[str, Any]:
    """Everything that a training state holds. The tensors are those that training goes on to change.

    Args:
        loop: `TrainLoop.state_dict()`.
    """
    ema = train_step.ema
    return {
        "params": train_step.generator.state_dict(),
        "params_ema": ema.state_dict() if ema is not None else None,
        "options": options.model_dump(mode="json"),
        "step": train_step.step,
        "scale": train_step.generator.scale,
        "scores": loop["scores"],
        "scored_step": loop["validated"],
        "train_step": train_step.state_dict(),
        "loop": loop,
    }


def write_files(
    state: dict[str, Any], folder: RunFolder, *, keep_states: int, keep_weights: int, log: SilentLog
) -> Iterator[None]:
    """Write the files of a save one after the other; a job of BackgroundJob. Delete those that are not kept.

    Args:
        state: a snapshot of a `training_state`. Training goes on meanwhile, so nothing else may be written.
        keep_states: how many of the newest training states are kept.
        keep_weights: weights are kept every so many steps.
    """
    started_s = time.perf_counter()
    log.flush()  # so that the figures on disk are never older than the newest state
    step, best = state["step"], state["loop"]["best"]
    path = folder.state(step)
    checkpoint.save_state(path, state)
    yield
    weights = {key: value for key, value in state.items() if key not in STATE_ONLY}
    checkpoint.save_generator(folder.latest_weights, **weights)
    yield
    discriminator = state["train_step"].get("discriminator")
    if discriminator is not None:
        path_d = folder.latest_discriminator
        checkpoint.save_discriminator(path_d, params=discriminator, options=state["options"], step=step)
        yield
    if best is not None and best["step"] == step:
        link_file(folder.latest_weights, folder.best_weights)
    link_file(folder.latest_weights, folder.weights(step))  # the last one: it shows that the save is complete
    for older in folder.saved_states()[1:]:  # several if a process was killed before it deleted them
        folder.delete_weights(older, kept_every_steps=keep_weights)
    best_state = folder.state(best["step"]) if best is not None else None
    folder.delete_states(keep=keep_states, best=best_state)
    size_mb, took_s = path.stat().st_size / 1e6, time.perf_counter() - started_s
    log.info(f"step {step:,}  saved {folder.latest_weights} and {path.name} ({size_mb:.3g} MB, {took_s:.2g} s)")
