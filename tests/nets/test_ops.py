import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from segmod.nets import ops
from segmod.nets.ops import BilinearUpsample, bilinear_kernel, classify_resized, crop, resize


def test_bilinear_kernel_of_four_pixels():
    # f = 2, centre 1.5: distances 1.5, .5, .5, 1.5 give 1 - d/2 = .25, .75, .75, .25 in each direction
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    assert torch.equal(bilinear_kernel(4), row[:, None] * row[None, :])


def test_bilinear_kernel_of_three_pixels():
    # f = 2, centre 1: distances 1, 0, 1 give .5, 1, .5
    row = torch.tensor([0.5, 1.0, 0.5])
    assert torch.equal(bilinear_kernel(3), row[:, None] * row[None, :])


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_upsampling_is_the_dense_caffe_deconvolution(factor):
    maps = torch.randn(2, 3, 5, 4)
    dense = torch.zeros(3, 3, 2 * factor, 2 * factor)
    for channel in range(3):
        dense[channel, channel] = bilinear_kernel(2 * factor)
    upsampled = BilinearUpsample(3, factor)(maps)
    assert upsampled.shape == (2, 3, 6 * factor, 5 * factor)
    torch.testing.assert_close(upsampled, F.conv_transpose2d(maps, dense, stride=factor))


def test_upsampling_cropped_by_half_a_factor_is_bilinear_interpolation():
    maps = torch.randn(1, 2, 6, 7)
    inner = crop(BilinearUpsample(2, 4)(maps), 2, (24, 28))
    # at the very edge interpolation repeats the last value where the transposed convolution fades to zero
    torch.testing.assert_close(inner[..., 2:-2, 2:-2], resize(maps, (24, 28))[..., 2:-2, 2:-2])


def test_only_a_learned_kernel_is_a_parameter_and_stored():
    assert not list(BilinearUpsample(3, 2).parameters())
    assert not BilinearUpsample(3, 2).state_dict()
    learned = BilinearUpsample(3, 2, learn=True)
    assert [name for name, _ in learned.named_parameters()] == ["weight"]
    torch.testing.assert_close(learned.weight[1, 0], bilinear_kernel(4))


def test_crop_keeps_the_window_that_starts_at_the_offset():
    maps = torch.arange(20.0).view(1, 1, 4, 5)
    assert crop(maps, 1, (2, 3)).flatten().tolist() == [6, 7, 8, 11, 12, 13]


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(
    "shapes", [[(29, 9), (15, 5), (1, 1)], [(7, 7), (3, 4)], [(29, 9)], [(60, 30), (29, 4), (2, 2)], [(15, 9), (29, 9)]]
)
def test_classified_strips_are_two_linear_layers_on_resized_maps(align_corners, shapes, monkeypatch):
    monkeypatch.setattr(ops, "_TILE", 8 * 4 * 3)  # strips of 8, 8, 8 and 5 rows, in tiles of 4, 4 and 1 columns
    torch.manual_seed(0)
    size = (29, 9)
    maps = [torch.randn(2, channels, *shape) for channels, shape in enumerate(shapes, start=2)]
    shares = [torch.randn(3, part.shape[1]) for part in maps]
    inputs = [*maps, *shares, torch.randn(3), torch.randn(4, 3), torch.randn(4)]
    ours = [part.clone().requires_grad_() for part in inputs]
    plain = [part.clone().requires_grad_() for part in inputs]
    n = len(maps)

    scores = classify_resized(ours[:n], ours[n:-3], ours[-3], size, ours[-2], ours[-1], align_corners)
    resized = torch.cat([resize(part, size, align_corners) for part in plain[:n]], dim=1).permute(0, 2, 3, 1)
    hidden = F.relu(F.linear(resized, torch.cat(plain[n:-3], dim=1), plain[-3]))
    expected = F.linear(hidden, plain[-2], plain[-1]).permute(0, 3, 1, 2)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(classify_resized(maps, shares, inputs[-3], size, *inputs[-2:], align_corners), scores)

    upstream = torch.randn_like(scores)
    scores.backward(upstream)
    expected.backward(upstream)
    for part, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(part.grad, other.grad, atol=1e-4, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_without_a_gradient_the_hidden_layer_is_never_held():
    # 2 x 400 x 20 pixels of 64 hidden channels would be 1 024 000 numbers; the maps have 16 000, the scores 48 000, and
    # interpolating 200 rows to 400 takes 80 000 weights
    maps, shares = [torch.randn(2, 4, 200, 10)], [torch.randn(64, 4)]
    with torch.no_grad(), Largest() as largest:
        classify_resized(maps, shares, torch.randn(64), (400, 20), torch.randn(3, 64), torch.randn(3))
    assert largest.numbers == 80_000


def test_antialiased_shrinking_weighs_every_pixel():
    # 8 pixels to 2: one bright pixel falls between the two samples of plain bilinear resizing (at 1.5 and 5.5), which
    # miss it; shrinking with an antialiasing filter cannot
    maps = torch.zeros(1, 1, 1, 8)
    maps[..., 3] = 1
    assert resize(maps, (1, 2)).sum() == 0
    assert resize(maps, (1, 2), antialias=True).sum() > 0
