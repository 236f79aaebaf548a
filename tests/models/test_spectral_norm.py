"""The spectral norm equals PyTorch's for every memory format, and is cheaper and float32 under autocast."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sed_sr.models.spectral_norm import spectral_norm

IMPLEMENTATIONS = (spectral_norm, parametrizations.spectral_norm)  # ours and PyTorch's
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
KERNELS = pytest.mark.parametrize("kernel", [1, 3, (2, 4)], ids=str)


def convolution(implementation, *, kernel=3, layout=torch.channels_last, seed=0):
    torch.manual_seed(seed)
    return implementation(nn.Conv2d(5, 7, kernel)).to(memory_format=layout)


def both(**settings):
    """A convolution with our spectral norm, and the same with PyTorch's."""
    return [convolution(implementation, **settings) for implementation in IMPLEMENTATIONS]


def original(layer):
    return layer.parametrizations.weight.original


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_and_gradient(layer):
    """The normalised weight, and the gradient of a fixed function of it with respect to the original weight."""
    weight = layer.weight
    (gradient,) = torch.autograd.grad((weight * noise(weight.shape)).sum(), original(layer))
    return weight.detach(), gradient


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def assert_equal_states(ours, theirs):
    assert_equal(dict(ours.state_dict()), dict(theirs.state_dict()))


@KERNELS
def test_same_seed_gives_the_same_network_as_pytorch(kernel):
    layers, draws = [], []
    for implementation in IMPLEMENTATIONS:
        layers.append(convolution(implementation, kernel=kernel))
        draws.append(torch.rand(3))  # the next random numbers
    assert_equal_states(*layers)
    assert torch.equal(*draws)


@LAYOUTS
@KERNELS
def test_weights_gradients_and_states_equal_those_of_pytorch(kernel, layout):
    layers = both(kernel=kernel, layout=layout)
    for step in range(6):
        for layer in layers:
            layer.train(step not in (2, 5))
        assert_equal(*(weight_and_gradient(layer) for layer in layers))
        assert_equal_states(*layers)
        with torch.no_grad():  # an optimiser's update; the singular vectors change
            for layer in layers:
                original(layer).add_(noise(layer.weight.shape, seed=step), alpha=0.1)


@LAYOUTS
def test_gradient_penalty_equals_that_of_pytorch(layout):
    """Second derivatives with respect to image and weight, as in R1."""
    gradients = []
    for layer in both(layout=layout):
        image = noise((2, 5, 6, 6)).requires_grad_()
        (image_gradient,) = torch.autograd.grad(layer(image).pow(3).sum(), image, create_graph=True)
        image_gradient.square().mean().backward()
        gradients.append(original(layer).grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first_in_training", [True, False])
def test_two_forward_passes_may_come_before_the_backward_pass(first_in_training):
    gradients = []
    for layer in both(kernel=1):  # for which buffers and weight have the same order
        weights = layer.train(first_in_training).weight, layer.train().weight
        sum((weight * noise(weight.shape, seed)).sum() for seed, weight in enumerate(weights)).backward()
        gradients.append(original(layer).grad)
    assert_equal(*gradients)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["from pytorch", "to pytorch"])
def test_states_load_in_both_directions(order):
    to, of = (IMPLEMENTATIONS[i] for i in order)
    loaded, trained = convolution(to, seed=1), convolution(of)
    trained(noise((1, 5, 8, 8)))
    loaded.load_state_dict(trained.state_dict(), strict=True)
    assert_equal(weight_and_gradient(loaded), weight_and_gradient(trained))
    assert_equal_states(loaded, trained)


def test_channels_last_stays_in_weights_and_gradients():
    layer = convolution(spectral_norm)
    for tensor in (original(layer), *weight_and_gradient(layer)):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


class Operations(TorchDispatchMode):
    """Counts operations that write a tensor; views do not."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_view = any(value.alias_info and not value.alias_info.is_write for value in function._schema.returns)
        if not is_view and function is not torch.ops.aten._unsafe_view.default:
            self.counts[str(function)] += 1
        return result


def test_uses_fewer_operations_than_pytorch():
    counted = []
    for layer in both():
        with Operations() as forward:
            weight = layer.weight
        gradient = torch.ones_like(weight)
        with Operations() as backward:
            weight.backward(gradient)
        counted.append((forward.counts.total(), backward.counts.total()))
    (our_forward, our_backward), (their_forward, their_backward) = counted
    assert our_forward <= 10 < their_forward
    assert our_backward <= 5 < their_backward


class MatrixProductsUnderAutocast(TorchFunctionMode):
    """Whether autocast was enabled in each matrix-vector product. CUDA's computes it in bfloat16, CPU's does not."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.mv:
            self.found.append(torch.is_autocast_enabled("cpu"))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_is_float32_under_autocast(training):
    plain, other = (convolution(spectral_norm).train(training) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16), MatrixProductsUnderAutocast() as products:
        weight, gradient = weight_and_gradient(other)
    assert products.found
    assert not any(products.found)
    assert weight.dtype == gradient.dtype == torch.float32
    assert_equal((weight, gradient), weight_and_gradient(plain))
    assert_equal_states(other, plain)


def test_copy_during_training_continues_equally():
    layer = convolution(spectral_norm)
    weight_and_gradient(layer)
    clone = copy.deepcopy(layer)
    for mine, other in zip(weight_and_gradient(clone), weight_and_gradient(layer), strict=True):
        assert torch.equal(mine, other)


def test_gradients_reach_the_image_through_frozen_weights():
    layer = convolution(spectral_norm).requires_grad_(False)
    image = noise((1, 5, 6, 6)).requires_grad_()
    before = layer.parametrizations.weight[0]._v.clone()
    layer(image).square().sum().backward()
    assert image.grad.any()
    assert original(layer).grad is None
    assert not torch.equal(layer.parametrizations.weight[0]._v, before)


def test_buffers_keep_their_memory():
    """A captured CUDA graph writes to the same memory in every replay."""
    norm = (layer := convolution(spectral_norm)).parametrizations.weight[0]
    before = norm._u.data_ptr(), norm._v.data_ptr()
    weight_and_gradient(layer)
    assert (norm._u.data_ptr(), norm._v.data_ptr()) == before


def test_never_waits_for_the_device():
    """Fake tensors raise if a value is read."""
    with FakeTensorMode():
        layer = spectral_norm(nn.Conv2d(5, 7, 3))
        layer(torch.rand(1, 5, 6, 6)).sum().backward()


def test_compiles_without_graph_breaks():
    layer = convolution(spectral_norm)
    plain, image = copy.deepcopy(layer), noise((1, 5, 6, 6))
    layer.compile(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        for each in (layer, plain):
            each.zero_grad()
            each(image).square().sum().backward()
        assert_equal(original(layer).grad, original(plain).grad)
        assert_equal_states(layer, plain)
