"""What all generators have in common."""

from torch import nn


class Generator(nn.Module):
    """A network that maps LR, (B, 3, H, W), to SR, (B, 3, scale * H, scale * W), both float in [0, 1].

    Attributes:
        scale: upsampling factor.
        precisions: those that the network supports, by autocast.
        prefers_whole_images: whether it uses information from all of an image, so that tiles change its results; then
            an image is divided only where memory requires it.
    """

    scale: int
    precisions: tuple[str, ...] = ("fp32", "tf32", "bf16", "fp16")
    prefers_whole_images: bool = False

    @property
    def about(self) -> str:
        """Its name, for messages."""
        return type(self).__name__
