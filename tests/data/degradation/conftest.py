import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sed_sr.data.degradation import jpeg, noise, sharpen

CONSTANTS = (jpeg._dct_matrix, jpeg._table, noise._luminance_weights, sharpen._kernels)


@pytest.fixture
def fake_gpu(monkeypatch):
    """Runs the test with fake tensors and returns their GPU, which need not exist.

    Fake tensors have a shape and a device but no values. They cannot be mixed with tensors of another device, and raise
    an error at what depends on values, such as `.item()` and boolean indexing. Generators cannot be fake, and fake
    tensors cannot be pinned: an attribute takes the place of pinned memory.
    """
    gpu = torch.device("cuda", 0)

    class Generator(torch.Generator):
        def __new__(cls, device):
            assert device == gpu
            return super().__new__(cls)

    def pin_memory(tensor):
        pinned = tensor.clone()
        pinned.in_pinned_memory = True
        return pinned

    def clear_constants():
        for constant in CONSTANTS:
            constant.cache_clear()

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    clear_constants()
    with FakeTensorMode():
        yield gpu
    clear_constants()  # other tests need real ones
