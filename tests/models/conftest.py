"""Parameters filled by a function of their names, and reference outputs for them (see tests/fixtures/README.md)."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def fill():
    """The module `tests/fixtures/fill.py`."""
    spec = importlib.util.spec_from_file_location("fill", FIXTURES / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference():
    """Function: name of a file with reference outputs -> its arrays."""

    def load(name):
        with np.load(FIXTURES / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def fill_parameters(fill):
    """Function that fills a module's parameters by their names, so that none is zero or one as after initialisation."""

    def fill_(module):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(fill.fill(name, parameter.shape)))
        return module

    return fill_
