import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sed_sr.data.tensors import to_array, to_float, to_integers, to_tensor, to_uint8


@given(st.integers(0, 255))
def test_uint8_survives_float(value):
    batch = torch.full((1, 3, 2, 2), value, dtype=torch.uint8)
    assert to_float(batch).max() <= 1
    assert torch.equal(to_uint8(to_float(batch)), batch)


def test_uint16_survives_float_and_multiples_of_257_equal_8_bits():
    values = np.arange(65536, dtype=np.uint16).reshape(1, 1, 256, 256)
    batch = torch.from_numpy(values)
    assert torch.equal(to_integers(to_float(batch), torch.uint16), batch)
    eight = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(torch.from_numpy(np.arange(256, dtype=np.uint16) * 257)), to_float(eight))


def test_float_is_clamped_and_rounded_to_the_nearest():
    values = torch.tensor([-0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.5])
    assert to_uint8(values).tolist() == [0, 0, 1, 255, 255]


def test_tensor_and_array_are_inverse_and_channels_come_first():
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    tensor = to_tensor(rgb)
    assert tensor.shape == (3, 20, 30)
    assert tensor[1, 5, 7] == rgb[5, 7, 1]
    np.testing.assert_array_equal(to_array(tensor), rgb)


def test_flipped_single_pixel_becomes_a_tensor():
    """The LR patch of training with hr_patch_px equal to the scale."""
    assert to_tensor(np.uint8([[[1, 2, 3]]])[::-1, ::-1]).flatten().tolist() == [1, 2, 3]
