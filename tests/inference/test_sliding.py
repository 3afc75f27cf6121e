"""Windows of a large image put together, against nets made by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from segmod.ground.errors import UserError
from segmod.ground.types import Batch
from segmod.inference.dense import DensePredictor
from segmod.inference.sliding import SlidingPredictor


class Pixelwise(nn.Module):
    """Scores each pixel by its colour alone, and remembers the shapes that it saw."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        scores: Tensor = self.layer(image / 255)
        return scores


class Corner(nn.Module):
    """Odds e : 1 for class 0 in the left-most column of whatever it sees, 1 : 1 elsewhere."""

    num_classes = 2

    def forward(self, image: Tensor) -> Tensor:
        logits = torch.zeros(len(image), 2, *image.shape[-2:])
        logits[:, 0, :, 0] = 1.0
        return logits


def batch_of(*size: int) -> Batch:
    image = torch.randint(256, (2, 3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    mask = torch.full((2, *size), 255)
    return {"image": image, "mask": mask, "name": ["a", "b"], "index": torch.arange(2)}


@pytest.mark.parametrize("blending", ["gaussian", "flat"])
@pytest.mark.parametrize("window", [12, (9, 12), (50, 30)])
def test_one_window_is_the_dense_predictor_to_the_last_bit(window: int | tuple[int, int], blending: str) -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(3, 5, 3, padding=1)
    net.num_classes = 5  # type: ignore[assignment]
    batch = batch_of(9, 12)
    assert torch.equal(SlidingPredictor(window, blending=blending)(net, batch), DensePredictor()(net, batch))


@pytest.mark.parametrize("blending", ["gaussian", "flat"])
@pytest.mark.parametrize(("window", "stride"), [(8, None), (8, 3), ((5, 40), (5, 11)), (1, 1)])
def test_where_windows_say_the_same_so_does_their_mean(
    window: int | tuple[int, int], stride: int | tuple[int, int] | None, blending: str
) -> None:
    net, batch = Pixelwise(), batch_of(19, 23)
    found = SlidingPredictor(window, stride, blending, batch_size=3)(net, batch)
    torch.testing.assert_close(found, DensePredictor()(net, batch), atol=1e-6, rtol=1e-6)


def test_windows_lie_evenly_and_within_the_image() -> None:
    # of 10 pixels by 4 with a stride of at most 4: two steps of 3; of 6 by 4: one step of 2
    places = SlidingPredictor(4, 4)._places
    assert [place.start for place, _ in places(0, 10, torch.device("cpu"))] == [0, 3, 6]
    assert [place.start for place, _ in places(0, 6, torch.device("cpu"))] == [0, 2]


def test_the_net_sees_batches_of_windows_alone() -> None:
    net = Pixelwise()
    SlidingPredictor(8, 8, batch_size=4)(net, batch_of(24, 16))
    assert net.seen == [(8, 3, 8, 8), (4, 3, 8, 8)]  # six windows of each of two images


def test_flat_windows_count_alike_and_gaussian_ones_less_at_their_edges() -> None:
    sure = float(torch.tensor(1.0).sigmoid())
    # windows begin in columns 0, 2 and 4, and column 4 is also in the middle of the second
    flat = SlidingPredictor(4, 2, "flat")(Corner(), batch_of(4, 8))[0, 0, 0]
    torch.testing.assert_close(flat[4], torch.tensor((sure + 0.5) / 2))
    torch.testing.assert_close(flat[0], torch.tensor(sure))  # no other window is there
    # of 4 pixels, half a pixel is one standard deviation: the weights are e**-4.5 at the edge and e**-0.5 inside
    share = 1 / (1 + torch.tensor(4.0).exp())
    gaussian = SlidingPredictor(4, 2)(Corner(), batch_of(4, 8))[0, 0, 0]
    torch.testing.assert_close(gaussian[4], 0.5 + share * (sure - 0.5))


class Made(TorchDispatchMode):
    """Notes how many numbers each new tensor holds."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            place, size = result.untyped_storage().data_ptr(), result.untyped_storage().nbytes()
            self.storages[place] = max(size, self.storages.get(place, 0))  # a place is used again
        return result


def test_besides_the_result_no_tensor_is_larger_than_a_window() -> None:
    net, batch = Pixelwise(), batch_of(300, 200)
    with Made() as made:
        SlidingPredictor(20)(net, batch)
    *others, largest = sorted(made.storages.values())
    assert largest == 4 * 2 * 4 * 300 * 200  # float32, two images, four classes
    others.remove(2 * 3 * 300 * 200)  # the image
    assert max(others) <= 4 * 2 * 4 * 20 * 20


def test_a_stride_that_leaves_gaps_is_refused() -> None:
    with pytest.raises(UserError, match=r"inference\.stride=9: larger than inference\.window=8"):
        SlidingPredictor(8, 9)
