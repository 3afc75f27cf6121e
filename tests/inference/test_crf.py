"""The CRF's mean field and its kernels, against loops, dense matrices and numbers made by hand."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch
from segmod.inference.crf import CRFPredictor, Gaussian, Kernel, Symmetric, dense_crf, mean_field
from segmod.inference.permutohedral import Permutohedral
from segmod.runs.instantiate import instantiate

CONF = Path(__file__).parents[2] / "conf"


class Fixed:
    """A predictor that always says the same."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        return self.scores


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 30, (height, width, 3)).astype(np.uint8)


def distributions(classes: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(classes, height, width, generator=torch.Generator().manual_seed(seed)).softmax(0)


def places(height: int, width: int) -> np.ndarray:
    """x and y of each pixel, row by row."""
    return np.array([(x, y) for y, x in product(range(height), range(width))], dtype=np.float32)


def dense(features: np.ndarray) -> Tensor:
    """The exact kernel as a matrix."""
    return torch.from_numpy(np.exp(-0.5 * ((features[:, None] - features[None]).astype(np.float64) ** 2).sum(-1)))


def by_loops(probabilities: Tensor, kernels: list[tuple[float, Tensor]], iterations: int) -> Tensor:
    """Algorithm 1 with every sum written out, a pixel's message to itself included."""
    classes, pixels = probabilities.shape
    marginals = probabilities.clone()
    for _ in range(iterations):
        energy = -probabilities.log()
        for i, label in product(range(pixels), range(classes)):
            for weight, kernel in kernels:
                for j, other in product(range(pixels), range(classes)):
                    energy[label, i] += weight * (label != other) * kernel[i, j] * marginals[other, j]
        marginals = (-energy).softmax(0)
    return marginals


def lattice_by_loops(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Adams et al. 2010, section 3, a point and a corner at a time; corners are tuples in a dict."""
    dims = features.shape[1]
    sides = dims + 1
    corners = []
    for point in features.astype(float):
        scaled = [point[i] * math.sqrt(2 / 3) * sides / math.sqrt((i + 1) * (i + 2)) for i in range(dims)]
        lifted = [sum(scaled[j:]) - (j * scaled[j - 1] if j else 0) for j in range(sides)]
        base = [sides * round(x / sides) for x in lifted]
        by_rest = sorted(range(sides), key=lambda j: base[j] - lifted[j])  # largest rest first
        excess = sum(base) // sides
        for _ in range(abs(excess)):  # rounded up once too often: undo it where it raised most, and likewise down
            j = by_rest.pop() if excess > 0 else by_rest.pop(0)
            base[j] -= sides if excess > 0 else -sides
            by_rest.insert(0 if excess > 0 else sides, j)
        rest = [lifted[j] - base[j] for j in by_rest]
        weights = [1 - (rest[0] - rest[-1]) / sides] + [
            (rest[dims - k] - rest[sides - k]) / sides for k in range(1, sides)
        ]
        for k, weight in enumerate(weights):
            assert weight > -1e-5
            corner = list(base)
            for position, j in enumerate(by_rest):
                corner[j] += k if position <= dims - k else k - sides
            corners.append((tuple(corner), weight))
    grid: dict[tuple[int, ...], np.ndarray] = {}
    for n, (corner, weight) in enumerate(corners):
        grid[corner] = grid.get(corner, 0) + weight * values[n // sides]
    for axis in range(sides):
        step = [-1] * sides
        step[axis] = dims
        new = {}
        for corner, value in grid.items():
            ahead = tuple(a + b for a, b in zip(corner, step, strict=True))
            behind = tuple(a - b for a, b in zip(corner, step, strict=True))
            new[corner] = value + 0.5 * (grid.get(ahead, 0) + grid.get(behind, 0))
        grid = new
    out = np.zeros_like(values, dtype=float)
    for n, (corner, weight) in enumerate(corners):
        out[n // sides] += weight * grid[corner] / (1 + 2.0**-dims)
    return out


def test_two_pixels_by_hand() -> None:
    # Pixel 1 says .8 : .2, pixel 2 is undecided; each hears the other alone, with weight 2 * .5. Pixel 2 then has the
    # log-odds .8 - .2 = .6, which is 1 / (1 + exp(-.6)) = .6457; pixel 1 has log 4 + .5 - .5, which is .8 as before.
    kernel = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    marginals = mean_field(torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log(), [(2.0, kernel)], iterations=1)
    torch.testing.assert_close(marginals[:, 0], torch.tensor([0.8, 0.645656]))


def test_mean_field_is_algorithm_1() -> None:
    probabilities = distributions(3, 2, 3).view(3, -1).double()
    place = places(2, 3)
    kernels = [(1.5, dense(place)), (0.5, dense(np.concatenate([place / 4, picture(2, 3).reshape(-1, 3) / 9], axis=1)))]
    expected = by_loops(probabilities, kernels, iterations=4)
    torch.testing.assert_close(mean_field(probabilities.log().T, kernels, iterations=4).T, expected)
    assert (expected - probabilities).abs().max() > 0.1


@pytest.mark.parametrize("kernel_normalization", ["none", "symmetric"])
def test_distance_term_alone_is_that_of_dense_matrices(kernel_normalization: str) -> None:
    probabilities = distributions(3, 5, 4)
    kernel = dense(places(5, 4) / 1.5)
    if kernel_normalization == "symmetric":
        total = kernel.sum(1)
        kernel = kernel / (total[:, None] * total[None]).sqrt()
    expected = mean_field(probabilities.view(3, -1).double().log().T, [(2.0, kernel)], iterations=10).T.view(3, 5, 4)
    marginals = dense_crf(
        probabilities, picture(5, 4), gaussian_sd=1.5, gaussian_weight=2.0, bilateral_weight=0,
        kernel_normalization=kernel_normalization, gaussian_kernel="exact",
    )  # fmt: skip
    assert marginals.dtype == torch.float32
    torch.testing.assert_close(marginals.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel_normalization", ["none", "symmetric"])
def test_both_terms_are_mean_field_on_the_two_lattices(kernel_normalization: str) -> None:
    probabilities, image = distributions(4, 6, 5), picture(6, 5)
    place, unit = places(6, 5), np.eye(30)
    features = [place / 2, np.concatenate([place / 4, image.reshape(-1, 3) / 6], axis=1)]
    matrices = [torch.from_numpy(lattice_by_loops(f, unit)) for f in features]
    if kernel_normalization == "symmetric":
        sums = [m.sum(1) for m in matrices]
        matrices = [m / torch.outer(s, s).sqrt() for m, s in zip(matrices, sums, strict=True)]
    terms: list[tuple[float, Kernel]] = list(zip((0.7, 1.1), matrices, strict=True))
    expected = mean_field(probabilities.view(4, -1).double().log().T, terms, iterations=3).T.view(4, 6, 5)
    marginals = dense_crf(
        probabilities, image, iterations=3, gaussian_sd=2, gaussian_weight=0.7, bilateral_sd=4, bilateral_sd_rgb=6,
        bilateral_weight=1.1, kernel_normalization=kernel_normalization,
    )  # fmt: skip
    torch.testing.assert_close(marginals.double(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("dims", "spread"), [(1, 2.0), (2, 3.0), (3, 4.0), (5, 3.0)])
def test_lattice_is_that_of_the_loops(dims: int, spread: float) -> None:
    rng = np.random.default_rng(dims)
    features = (spread * rng.normal(size=(60, dims))).astype(np.float32)
    values = rng.normal(size=(60, 3))
    kernel = Permutohedral(features)
    result = (kernel @ torch.from_numpy(values.astype(np.float32))).numpy()
    np.testing.assert_allclose(result, lattice_by_loops(features, values), atol=1e-4)


def test_features_too_far_apart_name_the_remedy() -> None:
    with pytest.raises(UserError, match=r"inference\.bilateral_sd_rgb"):
        Permutohedral(np.array([[0, 0, 0, 0, 0], [1e5, 1e5, 1e5, 1e5, 1e5]], dtype=np.float32))


def test_lattice_on_a_grid_is_a_gaussian_with_less_weight() -> None:
    # The blurs multiply a sum by 2 ** 3 and the scale is 1 / (1 + 2 ** -2). A corner stands for the volume of its cell,
    # (d + 1) ** (d - 1 / 2) over the scaling (sqrt(2 / 3) * (d + 1)) ** d = .866; a Gaussian's volume is 2 pi. Together
    # 8 * .8 * .866 / 6.283 = .882.
    side, sd = 121, 8.0
    kernel = Permutohedral(places(side, side) / np.float32(sd))
    exact = Gaussian((side, side), sd)
    middle = (side * side) // 2
    ones = torch.ones(side * side, 1)
    ratio = ((kernel @ ones) / (exact @ ones)).view(side, side)[40:81, 40:81]
    assert ratio.mean().item() == pytest.approx(0.882, abs=0.005)

    impulse = torch.zeros(side * side, 1)
    impulse[middle] = 1
    response = (kernel @ impulse).view(side, side) / 0.882
    peak = torch.exp(-0.5 * ((torch.from_numpy(places(side, side)) - side // 2) ** 2).sum(1) / sd**2).view(side, side)
    assert (response - peak).abs().max() < 0.25  # of a peak of 1
    offset = torch.arange(side) - side // 2
    assert (response.sum(0) @ offset.double().square().float() / response.sum()).item() == pytest.approx(sd**2, rel=0.1)


def test_means_over_a_shaded_picture_are_close_to_those_of_the_exact_kernel() -> None:
    # means under the kernel, where the lattice's lower sums cancel
    y, x = np.mgrid[:28, :36]
    image = np.stack([4 * x, 3 * y + x, 90 + 40 * np.sin(x / 9)], axis=-1).astype(np.uint8)
    features = np.concatenate([places(28, 36) / 20, image.reshape(-1, 3).astype(np.float32) / 3], axis=1)
    values = torch.from_numpy(features[:, 2:3] + np.sin(features[:, 1:2]))
    values = (values - values.min()) / (values.max() - values.min())
    kernel, exact = Permutohedral(features), dense(features).float()
    ones = torch.ones(len(features), 1)
    error = (kernel @ values) / (kernel @ ones) - (exact @ values) / (exact @ ones)
    assert error.abs().max() < 0.02


def test_gaussian_is_the_exact_kernel() -> None:
    values = torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    expected = dense(places(6, 10) / 2).float() @ values
    torch.testing.assert_close(Gaussian((6, 10), 2.0) @ values, expected, rtol=1e-5, atol=1e-5)


def test_symmetric_normalisation_by_hand() -> None:
    # the rows sum to 3 and 4: the entries are divided by 3, sqrt(12) and 4
    kernel = Symmetric(torch.tensor([[2.0, 1.0], [1.0, 3.0]]), 2)
    expected = torch.tensor([[2 / 3, 1 / math.sqrt(12)], [1 / math.sqrt(12), 3 / 4]])
    torch.testing.assert_close(kernel @ torch.eye(2), expected)


@pytest.mark.parametrize("settings", [{"gaussian_weight": 0, "bilateral_weight": 0}, {"iterations": 0}])
def test_without_pairwise_terms_the_probabilities_stay(settings: dict[str, int]) -> None:
    probabilities = distributions(21, 9, 7)
    torch.testing.assert_close(dense_crf(probabilities, picture(9, 7), **settings), probabilities)


@pytest.mark.parametrize("kernel_normalization", ["none", "symmetric"])
def test_certain_pixels_give_no_nan(kernel_normalization: str) -> None:
    probabilities = torch.zeros(3, 8, 8)
    probabilities[0, :, :4] = 1
    probabilities[2, :, 4:] = 1
    marginals = dense_crf(probabilities, picture(8, 8), kernel_normalization=kernel_normalization)
    assert marginals.isfinite().all()
    torch.testing.assert_close(marginals.sum(0), torch.ones(8, 8))


def test_one_pixel_and_one_class() -> None:
    assert dense_crf(torch.ones(1, 1, 1), picture(1, 1)).item() == 1
    torch.testing.assert_close(dense_crf(torch.ones(1, 5, 3), picture(5, 3)), torch.ones(1, 5, 3))


def test_labels_are_drawn_to_the_edges_of_colour() -> None:
    # dark left of column 20, light right of it; the unary term has the border four columns too far right and is wrong
    # in a fifth of the pixels
    image = np.full((40, 40, 3), 60, dtype=np.uint8)
    image[:, 20:] = 180
    truth = (torch.arange(40) >= 20).long().expand(40, 40)
    labels = (torch.arange(40) >= 24).long().repeat(40, 1)
    wrong = torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.2
    labels[wrong] = 1 - labels[wrong]
    probabilities = torch.where(labels.bool(), torch.tensor([[[0.3]], [[0.7]]]), torch.tensor([[[0.7]], [[0.3]]]))
    assert (probabilities.argmax(0) != truth).float().mean() > 0.2

    by_distance = dense_crf(probabilities, image, bilateral_weight=0).argmax(0)
    assert torch.equal(by_distance[:, :18], truth[:, :18])  # no noise left, but the border is where the unary has it
    assert (by_distance[:, 20:24] != truth[:, 20:24]).float().mean() > 0.5
    assert torch.equal(dense_crf(probabilities, image).argmax(0), truth)


def test_predictor_scores_each_image_of_a_batch_by_its_own_pixels() -> None:
    first, second = picture(6, 7, 1), picture(6, 7, 2)
    scores = torch.stack([distributions(3, 6, 7, seed) for seed in (3, 4)])
    batch: Batch = {
        "image": torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in (first, second)]),
        "mask": torch.full((2, 6, 7), 255),
        "name": ["a", "b"],
        "index": torch.arange(2),
    }
    settings = {"iterations": 2, "bilateral_sd": 5.0, "gaussian_weight": 0.5, "kernel_normalization": "symmetric"}
    result = CRFPredictor(Fixed(scores), **settings)(nn.Identity(), batch)  # type: ignore[arg-type]
    expected = [dense_crf(s, image, **settings) for s, image in zip(scores, (first, second), strict=True)]  # type: ignore[arg-type]
    assert torch.equal(result, torch.stack(expected))


@pytest.mark.parametrize("gaussian_kernel", ["lattice", "exact"])
def test_half_precision_around_it_changes_nothing(gaussian_kernel: str) -> None:
    probabilities, image = distributions(3, 12, 10), picture(12, 10)
    expected = dense_crf(probabilities, image, gaussian_kernel=gaussian_kernel)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_crf(probabilities, image, gaussian_kernel=gaussian_kernel), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("iterations", -1), ("gaussian_sd", 0.0), ("gaussian_weight", -3.0), ("bilateral_sd", -20.0),
        ("bilateral_sd_rgb", 0.0), ("bilateral_weight", math.nan), ("kernel_normalization", "after"),
        ("gaussian_kernel", "box"),
    ],
)  # fmt: skip
def test_impossible_settings_name_the_key(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"inference\.{key}"):
        CRFPredictor(Fixed(torch.ones(1)), **{key: value})  # type: ignore[arg-type]


def test_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="4 x 5"):
        dense_crf(distributions(2, 4, 5), picture(5, 4))


def test_config_builds_it_on_any_predictor() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = compose("train", ["inference=crf"])
        other = compose(
            "train", ["inference=crf", "inference@inference.predictor=multiscale", "inference.iterations=3"]
        )
        wrong = compose("train", ["inference=crf", "inference.kernel_normalization=before"])
    assert type(instantiate(plain, "inference").predictor).__name__ == "DensePredictor"
    built = instantiate(other, "inference")
    assert type(built.predictor).__name__ == "MultiScalePredictor"
    assert built.crf.keywords["iterations"] == 3
    with pytest.raises(UserError, match=r"inference\.kernel_normalization"):
        instantiate(wrong, "inference")


def test_agrees_with_the_code_of_the_authors() -> None:
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    probabilities, image = distributions(5, 40, 50), picture(40, 50)
    for kernel_normalization, constant in (
        ("none", densecrf.NO_NORMALIZATION),
        ("symmetric", densecrf.NORMALIZE_SYMMETRIC),
    ):
        theirs = densecrf.DenseCRF2D(50, 40, 5)
        theirs.setUnaryEnergy(np.ascontiguousarray(-probabilities.log().view(5, -1).numpy()))
        theirs.addPairwiseGaussian(3, 3, densecrf.CONST_KERNEL, constant)
        theirs.addPairwiseBilateral(20, 3, image, 5, densecrf.CONST_KERNEL, constant)
        expected = torch.from_numpy(np.array(theirs.inference(10))).view(5, 40, 50)
        marginals = dense_crf(probabilities, image, kernel_normalization=kernel_normalization)  # type: ignore[arg-type]
        torch.testing.assert_close(marginals, expected, atol=1e-3, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("gaussian_kernel", ["lattice", "exact"])
def test_gpu_gives_the_same(gaussian_kernel: str) -> None:
    probabilities, image = distributions(5, 60, 50), picture(60, 50)
    expected = dense_crf(probabilities, image, gaussian_kernel=gaussian_kernel)  # type: ignore[arg-type]
    marginals = dense_crf(probabilities.cuda(), image, gaussian_kernel=gaussian_kernel)  # type: ignore[arg-type]
    assert marginals.is_cuda
    torch.testing.assert_close(marginals.cpu(), expected, atol=1e-3, rtol=0)
