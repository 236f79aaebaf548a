"""The metrics of pyiqa (IQA-PyTorch), an optional dependency that is imported when one of them is used."""

import difflib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from types import ModuleType
from typing import Protocol

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import is_out_of_memory, unless_out_of_memory

TRIAL_SIDE_PX = 256


class _Model(Protocol):
    """What is used of the metrics that pyiqa creates."""

    net: nn.Module
    lower_better: bool
    metric_mode: str


class PyiqaMetric:
    """A metric of pyiqa, on RGB in [0, 1], uncropped.

    pyiqa downloads the weights of metrics into its own cache. The metric is computed on noise first, since some (fid)
    do not score single images, and this should not show only after all images are upscaled.

    Args:
        name: one of pyiqa.list_models().
        device: where to compute.
        built_in: the names of the metrics that do not need pyiqa, for messages.

    Attributes:
        lower_is_better, needs_ground_truth: as stated by pyiqa.

    Raises:
        UserError: pyiqa or a dependency of the metric is not installed; pyiqa has no metric of this name; the weights
            of the metric cannot be downloaded; it does not score single images.
    """

    def __init__(self, name: str, *, device: torch.device, built_in: Sequence[str]) -> None:
        self._name = name
        status = Text(f"loading {name}; pyiqa downloads missing weights")
        with Console(file=sys.stderr).status(status), _quiet():
            pyiqa = _import_pyiqa(name, built_in)
            known = pyiqa.list_models()
            if name not in known:
                raise UserError(
                    f"there is no metric {name}{_did_you_mean(name, [*built_in, *known])}: it is not a built-in metric "
                    f"({', '.join(built_in)}), nor one of the {len(known)} of pyiqa {pyiqa.__version__}"
                )
            metric = _create(pyiqa, name, device)
            # Not `metric` itself, which turns TF32 of cuDNN on for the whole process.
            self._network, self._device = metric.net, device
            self.lower_is_better = metric.lower_better
            self.needs_ground_truth = metric.metric_mode == "FR"
            noise = torch.Generator().manual_seed(0)
            sr, hr = torch.randint(256, (2, 3, TRIAL_SIDE_PX, TRIAL_SIDE_PX), generator=noise, dtype=torch.uint8)
            if unless_out_of_memory(partial(self, sr, hr)) is None:
                raise UserError(f"{device} has too little memory for {name} of pyiqa")

    @torch.inference_mode()
    def __call__(self, sr: Tensor, hr: Tensor | None) -> float:
        """The score of an image, (3, H, W) uint8 RGB; `hr` is used if the metric needs ground truth.

        Raises:
            UserError: the metric cannot score it, for instance because it is too small.
        """
        images = [sr]
        if self.needs_ground_truth:
            assert hr is not None
            images.append(hr)
        try:
            output = self._network(*(image[None].to(self._device).float() / 255 for image in images))
            return (output[0] if isinstance(output, tuple) else output).item()
        except Exception as error:  # the networks of pyiqa raise all kinds of exceptions
            if is_out_of_memory(error):
                raise
            _, height, width = sr.shape
            raise UserError(
                f"{self._name} of pyiqa cannot score an image of {width}x{height} px ({_reason(error)})"
            ) from error


def _import_pyiqa(name: str, built_in: Sequence[str]) -> ModuleType:
    try:
        import pyiqa  # here, since it is optional, and slow to import
    except ImportError as error:
        raise UserError(
            f"{name} is not a built-in metric ({', '.join(built_in)}){_did_you_mean(name, built_in)}, and pyiqa, which "
            f"has many more, cannot be imported ({_reason(error)}): pip install pyiqa"
        ) from error
    return pyiqa


def _create(pyiqa: ModuleType, name: str, device: torch.device) -> _Model:
    try:
        return pyiqa.create_metric(name, device=device)
    except OSError as error:  # includes those of urllib and of the Hugging Face Hub
        raise UserError(f"the weights of {name} could not be downloaded or read by pyiqa ({_reason(error)})") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{device} has too little memory for {name} of pyiqa") from error
        # usually a missing package, which pyiqa reports in several ways
        raise UserError(
            f"pyiqa could not build {name} ({_reason(error)}): pip install pyiqa installs all that its metrics need"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress output, logging and warnings, of which pyiqa has many while it loads."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(dict.fromkeys(near))}?)" if near else ""


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
