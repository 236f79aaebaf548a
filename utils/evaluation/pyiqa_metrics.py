"""Any metric of pyiqa (IQA-PyTorch), which is an optional install: it is imported when one of them is asked for."""

import difflib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from types import ModuleType

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from sed_sr.options.errors import UserError
from sed_sr.utils.runtime.memory import is_out_of_memory, unless_out_of_memory

TRIAL_SIDE_PX = 256


class PyiqaMetric:
    """A metric by the name that pyiqa gives it, on RGB in [0, 1], uncropped.

    pyiqa downloads the weights that a metric needs, into its own cache. The metric is tried on noise at once: some
    names (fid) are of scores that no single image has, and that should not show after all the images were upscaled.

    Args:
        name: one of pyiqa.list_models().
        device: where to compute.
        built_in: the names that need no pyiqa, for messages.

    Attributes:
        lower_is_better, needs_ground_truth: what pyiqa says of it.

    Raises:
        UserError: pyiqa is not installed, or not with all that this metric needs; it has no metric of this name; the
            metric's weights cannot be had; it does not score single images.
    """

    def __init__(self, name: str, *, device: torch.device, built_in: Sequence[str]) -> None:
        self._name = name
        waiting = Text(f"loading {name}; pyiqa downloads weights that are not here yet")
        with Console(file=sys.stderr).status(waiting), _quiet():
            pyiqa = _import_pyiqa(name, built_in)
            known = pyiqa.list_models()
            if name not in known:
                raise UserError(
                    f"there is no metric {name}{_did_you_mean(name, [*built_in, *known])}: neither among the built-in "
                    f"ones ({', '.join(built_in)}), nor among the {len(known)} of pyiqa {pyiqa.__version__}"
                )
            metric = _create(pyiqa, name, device)
            # Not `metric` itself: it calls its network with cuDNN's TF32 on, and that setting is the whole process's.
            self._network, self._device = metric.net, device
            self.lower_is_better: bool = metric.lower_better
            self.needs_ground_truth: bool = metric.metric_mode == "FR"
            noise = torch.Generator().manual_seed(0)
            sr, hr = torch.randint(256, (2, 3, TRIAL_SIDE_PX, TRIAL_SIDE_PX), generator=noise, dtype=torch.uint8)
            if unless_out_of_memory(partial(self, sr, hr)) is None:
                raise UserError(f"{device} has too little memory for {name} of pyiqa")

    @torch.inference_mode()
    def __call__(self, sr: Tensor, hr: Tensor | None) -> float:
        """The score of an image, (3, H, W) uint8 RGB, beside its ground truth where the metric needs one.

        Raises:
            UserError: the metric cannot score it, for instance because it is too small.
        """
        images = (sr, hr) if self.needs_ground_truth else (sr,)
        try:
            output = self._network(*(image[None].to(self._device).float() / 255 for image in images))
            return (output[0] if isinstance(output, tuple) else output).item()
        except Exception as error:  # each of pyiqa's hundred networks fails in its own way
            if is_out_of_memory(error):
                raise
            _, height, width = sr.shape
            raise UserError(
                f"{self._name} of pyiqa cannot score an image of {width}x{height} px ({_reason(error)})"
            ) from error


def _import_pyiqa(name: str, built_in: Sequence[str]) -> ModuleType:
    try:
        import pyiqa
    except ImportError as error:
        raise UserError(
            f"the metric {name} is not a built-in one ({', '.join(built_in)}){_did_you_mean(name, built_in)}, and "
            f"pyiqa, which has many more, cannot be imported ({_reason(error)}): pip install pyiqa"
        ) from error
    return pyiqa


def _create(pyiqa: ModuleType, name: str, device: torch.device) -> torch.nn.Module:
    try:
        return pyiqa.create_metric(name, device=device)
    except OSError as error:  # of which those of urllib and of the Hugging Face Hub are kinds
        raise UserError(f"the weights of {name} could not be downloaded or read by pyiqa ({_reason(error)})") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"{device} has too little memory for {name} of pyiqa") from error
        # a package that its network needs is missing, which pyiqa reports in several ways
        raise UserError(
            f"pyiqa could not build {name} ({_reason(error)}): pip install pyiqa brings all that its metrics need"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is printed, logged or warned of in the block: what pyiqa says while it loads is not for our user."""
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
