"""What stands before the names of a network's weights in files: traces of the modules that were wrapped around it."""

from collections.abc import Callable, Set
from pathlib import Path

from torch import Tensor

from sed_sr.options.errors import UserError

# What stands before a network's own keys: DistributedDataParallel's attribute, KAIR's and BasicSR's.
OUTER_WRAPPERS = frozenset({"module", "netG", "net_g"})
# Of torch.compile, FSDP and activation checkpointing: before a network's own keys, and before those of parts of it.
INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def without_wrappers(
    state: dict[str, Tensor], path: str | Path, *, attributes: Set[str], known: Callable[[Set[str]], bool]
) -> tuple[dict[str, Tensor], str | None]:
    """A network's weights under its own names, from a state dict of what was wrapped around it, in any nesting.

    What lies beside the network is left out: other networks, losses, counters.

    Args:
        path: of the file, for messages.
        attributes: of larger models, that may hold the network. They are stripped only if that gives a known network.
        known: whether names are those of a network of the kind wanted.

    Returns:
        The weights, and a phrase that says what was stripped from their names; None if that is nothing.

    Raises:
        UserError: several networks are known, or several tensors have one name.
    """
    bare, outer, every = (
        _by_wrapper(state, outer, attributes)
        for outer, attributes in ((set(), set()), (OUTER_WRAPPERS, set()), (OUTER_WRAPPERS, attributes))
    )
    if sum(map(len, bare.values())) < len(state):
        raise UserError(f"{path} holds weights twice, with and without {' or '.join(sorted(INNER_WRAPPERS))}")
    for groups in (bare, outer, every):
        found = [before for before in groups if known(groups[before].keys())]
        if len(found) > 1:
            places = " and ".join(repr(".".join((*before, ""))) for before in found)
            raise UserError(f"{path} holds several networks, under {places}; keep the one that counts in a file alone")
        if found:
            break
    else:  # unknown networks: PyTorch's wrappers are stripped all the same
        groups = outer
        found = [max(groups, key=lambda before: (before != (), len(groups[before])))]
    (before,) = found
    names = groups[before]
    inner = (part for name in names.values() for part in name.split(".") if part in INNER_WRAPPERS)
    stripped = ", ".join(f"'{part}.'" for part in dict.fromkeys((*before, *inner)))
    return {own: state[name] for own, name in names.items()}, f"stripped of {stripped}" if stripped else None


def _by_wrapper(
    state: dict[str, Tensor], outer: Set[str], attributes: Set[str]
) -> dict[tuple[str, ...], dict[str, str]]:
    """The names in `state` by the wrappers that they begin with: {wrappers: {name without: name}}."""
    groups = {(): {}}
    for name in state:
        parts = [part for part in name.split(".") if part not in INNER_WRAPPERS]
        end = 0
        while end < len(parts) - 1 and (
            parts[end] in outer
            # old ESRGAN's own keys begin with model.0
            or (parts[end] in attributes and not parts[end + 1].isdecimal())
        ):
            end += 1
        groups.setdefault(tuple(parts[:end]), {})[".".join(parts[end:])] = name
    return groups
