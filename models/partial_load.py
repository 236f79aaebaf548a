"""Load a part of a published network's weights."""

from torch import Tensor, nn

from sed_sr.options.errors import UserError


def load_part(network: nn.Module, state: dict[str, Tensor], *, prefix: str, what: str) -> None:
    """Load the weights of `network` from the state dict of a larger network, where their names start with `prefix`.

    BatchNorm's `num_batches_tracked` may be absent, because it does not affect the output.

    Args:
        what: description of the weights, for the message.

    Raises:
        UserError: another weight is missing or has another shape.
    """
    weights = {}
    for name, own in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights[name] = own
            continue
        given = state.get(prefix + name)
        if given is None or given.shape != own.shape:
            problem = "lack it" if given is None else f"have the shape {tuple(given.shape)} there"
            raise UserError(
                f"{what} were expected with `{prefix}{name}` of shape {tuple(own.shape)}, but those given {problem}"
            )
        weights[name] = given
    network.load_state_dict(weights)
