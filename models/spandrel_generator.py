"""Generators of other projects: every super-resolution architecture that spandrel recognises.

spandrel (https://github.com/chaiNNer-org/spandrel) derives the architecture and all sizes from a state dict.
"""

import copy
import warnings

import torch
from torch import Tensor

from sed_sr.models.generator import Generator
from sed_sr.models.padding import reflect_pad
from sed_sr.options.errors import UserError

TRIAL_PX = 16  # side of the LR images of a trial, or as much more as the network requires


class SpandrelGenerator(Generator):
    """The network that spandrel builds from a state dict, with its weights.

    Images are padded by reflection to a size that the network accepts, and results are cropped.

    The state dict has the names of the network itself, so that files written here load in spandrel and in the project
    that the network is from.

    Args:
        state: the weights, in a naming that spandrel reads. They are copied.

    Raises:
        UserError: spandrel does not know the architecture or cannot load the weights, or the network is not for SR or
            restoration of RGB images. The message is to be completed by the name of the file.
    """

    def __init__(self, state: dict[str, Tensor]):
        from spandrel import ImageModelDescriptor, ModelTiling  # here, because it takes two seconds

        super().__init__()
        descriptor = _load(state)
        tags = f" ({', '.join(descriptor.tags)})" if descriptor.tags else ""
        self._about = f"{descriptor.architecture.name}{tags}, x{descriptor.scale}"
        if not isinstance(descriptor, ImageModelDescriptor) or descriptor.purpose not in ("SR", "Restoration"):
            raise UserError(f"{self.about}, is for {descriptor.purpose}; networks for SR and restoration are supported")
        channels = descriptor.input_channels, descriptor.output_channels
        if channels != (3, 3):
            raise UserError(f"{self.about}, maps {channels[0]} channels to {channels[1]}; images here have 3 (RGB)")
        self.network = descriptor.model
        self.scale = descriptor.scale
        self.prefers_whole_images = descriptor.tiling != ModelTiling.SUPPORTED
        supported = {"bf16": descriptor.supports_bfloat16, "fp16": descriptor.supports_half}
        self.precisions = tuple(name for name in Generator.precisions if supported.get(name, True))
        self._sizes = descriptor.size_requirements
        # How the network is called. spandrel's own call is for inference only.
        self._call = descriptor._call_fn

    @property
    def about(self) -> str:
        """Architecture, sizes and scale: `HAT (medium, s64w16, 64nf, 180dim, 1conv), x4`."""
        return self._about

    def forward(self, lr: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, 3, scale * H, scale * W) float, about [0, 1] but not clipped."""
        height, width = lr.shape[-2:]
        pad_width, pad_height = self._sizes.get_padding(width, height)
        if not pad_width and not pad_height:
            return self._call(self.network, lr.clone())  # a copy, because some networks, such as RCAN, change it
        sr = self._call(self.network, reflect_pad(lr, height + pad_height, width + pad_width))
        return sr[..., : self.scale * height, : self.scale * width]

    def state_dict(self, *args, **kwargs):
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        return self.network.load_state_dict(state_dict, strict=strict, assign=assign)

    def check_upscaling(self) -> None:
        """Check by a trial that the network upscales: spandrel may derive wrong sizes from weights that it loads.

        Raises:
            UserError: in evaluation mode, the network fails or returns something other than SR.
        """
        with torch.no_grad():
            self._trial("used", training=False)

    def prepare_for_training(self) -> None:
        """Check by trials that the network can be trained, and freeze the parameters that it replaces itself.

        Raises:
            UserError: as `check_upscaling`, also in training mode, or it returns SR without a gradient.
        """
        self.check_upscaling()
        with torch.enable_grad():
            sr = self._trial("trained", training=True)
        if not sr.requires_grad:
            raise UserError(f"{self.about}, cannot be trained: its output has no gradient")
        for name in self.replaced_parameters():
            self.get_parameter(name).requires_grad_(False)

    def _trial(self, use: str, *, training: bool) -> Tensor:
        """SR of small images. Raises UserError if the network fails, or returns something else."""
        lr = self._trial_images()
        expected = (*lr.shape[:2], self.scale * lr.shape[2], self.scale * lr.shape[3])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch about the network's code, which it gives only once
                # By a copy, because batch normalisation in training mode changes its buffers.
                sr = copy.deepcopy(self).train(training)(lr)
        except Exception as error:  # of any kind, since the network's code is not known
            raise UserError(f"{self.about}, cannot be {use}: {in_one_line(error)}") from error
        if not isinstance(sr, Tensor) or sr.shape != expected:
            shape = tuple(sr.shape) if isinstance(sr, Tensor) else f"a {type(sr).__name__}"
            raise UserError(f"{self.about}, cannot be {use}: it returns {shape} instead of {expected}")
        return sr

    def replaced_parameters(self) -> list[str]:
        """The names of the parameters that the network replaces whenever it runs in evaluation mode.

        SPAN, for example, merges convolutions into one for inference. They must not be updated where they are.
        """
        trial = copy.deepcopy(self).eval()
        addresses = {name: parameter.data_ptr() for name, parameter in trial.named_parameters()}
        with torch.no_grad():
            trial(self._trial_images())
        return [name for name, parameter in trial.named_parameters() if parameter.data_ptr() != addresses[name]]

    def _trial_images(self) -> Tensor:
        side = TRIAL_PX + self._sizes.get_padding(TRIAL_PX, TRIAL_PX)[0]
        return torch.rand(2, 3, side, side)


def _load(state: dict[str, Tensor]):
    """spandrel's descriptor of the network with this state dict."""
    from spandrel import MAIN_REGISTRY, UnsupportedModelError  # here, because it takes two seconds

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within PyTorch
            return MAIN_REGISTRY.load(dict(state))  # a copy, because it is changed
    except UnsupportedModelError:
        raise UserError("no network that spandrel knows has weights of these names") from None
    except Exception as error:  # wrong sizes raise nearly anything: RuntimeError, KeyError, AssertionError...
        raise UserError(f"spandrel cannot load these weights: {in_one_line(error)}") from error


def in_one_line(error: Exception) -> str:
    """The kind of an error, and the beginning of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
