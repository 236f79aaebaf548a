"""Loading the part of a published network that is used here."""

from torch import Tensor, nn

from sed_sr.options.errors import UserError


def load_part(network: nn.Module, state: dict[str, Tensor], *, prefix: str, what: str) -> None:
    """Give `network` its weights from a larger network's state dict, in which their names begin with `prefix`.

    BatchNorm's counters of batches, which normalisation does not read, may be absent. Raises UserError, which calls the
    file `what`, if another weight is missing or of another shape.
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
