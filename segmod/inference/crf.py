"""A fully connected CRF on the probabilities of another predictor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Tensor, nn

from segmod.ground.errors import UserError
from segmod.ground.types import Batch, NotNegative, Predictor, picture_of
from segmod.inference.permutohedral import Permutohedral


class Kernel(Protocol):
    """A matrix over the pixels, known by its products alone."""

    def __matmul__(self, values: Tensor) -> Tensor:
        """Kernel times values, both float32 (pixels, classes)."""
        ...


Deviation = Annotated[float, Gt(0), Le(1000)]


class CRFPredictor:
    """Marginals of a fully connected CRF on another predictor's probabilities, as in DeconvNet+CRF (Noh et al. 2015).

    Args:
        predictor: Scores the images first.
        iterations: Of mean field; this and the rest as in `dense_crf`.
        gaussian_sd: Pixels.
        gaussian_weight: 0 leaves the term out.
        bilateral_sd: Pixels.
        bilateral_sd_rgb: In units of 0..255.
        bilateral_weight: 0 leaves the term out.
        kernel_normalization: ``none`` or ``symmetric``.
        gaussian_kernel: ``lattice`` or ``exact``.

    Raises:
        UserError: A setting makes no sense.
    """

    def __init__(
        self,
        predictor: Predictor,
        iterations: Annotated[int, Ge(0), Le(1000)] = 10,
        gaussian_sd: Deviation = 3.0,
        gaussian_weight: NotNegative = 3.0,
        bilateral_sd: Deviation = 20.0,
        bilateral_sd_rgb: Deviation = 3.0,
        bilateral_weight: NotNegative = 5.0,
        kernel_normalization: Literal["none", "symmetric"] = "none",
        gaussian_kernel: Literal["lattice", "exact"] = "lattice",
    ) -> None:
        for key, sd in (("gaussian_sd", gaussian_sd), ("bilateral_sd", bilateral_sd)):
            _require(0 < sd < math.inf, f"inference.{key}={sd}: must be a number of pixels above 0")
        _require(
            0.5 <= bilateral_sd_rgb < math.inf,
            f"inference.bilateral_sd_rgb={bilateral_sd_rgb}: must be at least 0.5; colours are whole numbers, 0 to 255",
        )
        for key, weight in (("gaussian_weight", gaussian_weight), ("bilateral_weight", bilateral_weight)):
            _require(0 <= weight < math.inf, f"inference.{key}={weight}: must be 0 (no such term) or above")
        _require(iterations >= 0, f"inference.iterations={iterations}: must be 0 or above")
        _require(
            kernel_normalization in ("none", "symmetric"),
            f"inference.kernel_normalization={kernel_normalization}: choose none or symmetric",
        )
        _require(
            gaussian_kernel in ("lattice", "exact"),
            f"inference.gaussian_kernel={gaussian_kernel}: choose lattice or exact",
        )
        self.predictor = predictor
        self.crf = partial(
            dense_crf,
            iterations=iterations,
            gaussian_sd=gaussian_sd,
            gaussian_weight=gaussian_weight,
            bilateral_sd=bilateral_sd,
            bilateral_sd_rgb=bilateral_sd_rgb,
            bilateral_weight=bilateral_weight,
            kernel_normalization=kernel_normalization,
            gaussian_kernel=gaussian_kernel,
        )

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities, float32 (B, K, H, W), of ``batch['image']`` (B, 3, H, W)."""
        scores = self.predictor(net, batch)
        pictures = map(picture_of, batch["image"])
        return torch.stack([self.crf(score, picture) for score, picture in zip(scores, pictures, strict=True)])


@torch.no_grad()
def dense_crf(
    probabilities: Tensor,
    image: NDArray[np.uint8],
    *,
    iterations: int = 10,
    gaussian_sd: float = 3.0,
    gaussian_weight: float = 3.0,
    bilateral_sd: float = 20.0,
    bilateral_sd_rgb: float = 3.0,
    bilateral_weight: float = 5.0,
    kernel_normalization: Literal["none", "symmetric"] = "none",
    gaussian_kernel: Literal["lattice", "exact"] = "lattice",
) -> Tensor:
    """Marginals of the fully connected CRF of Kraehenbuehl & Koltun 2011 by mean field (their Algorithm 1).

    The unary term is -log p, the pairwise one a Potts model under two Gaussian kernels: one of the distance, which
    removes small regions, and one of distance and colour, which draws labels to the edges of the image.

    Differs from the paper: a pixel's message to itself is not left out, as in the authors' code; it sharpens the
    marginals and changes no neighbour. Kernels are those of the permutohedral lattice, as in that code, whose sums are
    0.88 of the exact ones for the distance, and about half for distance and colour in photographs.

    Args:
        probabilities: (K, H, W), of any precision. A 0 counts as the smallest normal float32, with a unary term of 87.
        image: uint8 (H, W, 3), RGB.
        iterations: Of mean field, all pixels at once; 0 gives the probabilities back.
        gaussian_sd: Standard deviation of the first kernel, in pixels.
        gaussian_weight: Of the first kernel.
        bilateral_sd: Standard deviation of the second kernel, in pixels.
        bilateral_sd_rgb: Standard deviation of the second kernel in each colour, in units of 0..255.
        bilateral_weight: Of the second kernel.
        kernel_normalization: ``none`` multiplies the weights with plain kernel sums, as DeconvNet's script does;
            ``symmetric`` takes D^-1/2 K D^-1/2, D being the sums over the rows of K (Kraehenbuehl & Koltun 2013).
        gaussian_kernel: ``lattice``, or ``exact`` for the first kernel itself, cut off at five standard deviations,
            where it is 4e-6; the second kernel has no such form.

    Returns:
        float32 (K, H, W), on the device of the probabilities.
    """
    classes, height, width = probabilities.shape
    if image.shape != (height, width, 3):
        raise ValueError(f"probabilities of {height} x {width} pixels do not go with an image of shape {image.shape}")
    device = probabilities.device
    rows, columns = np.mgrid[:height, :width].reshape(2, -1).astype(np.float32)
    place = np.stack([columns, rows], axis=1)

    terms: list[tuple[float, Kernel]] = []
    if gaussian_weight and iterations:
        exact = gaussian_kernel == "exact"
        near = Gaussian((height, width), gaussian_sd, device) if exact else Permutohedral(place / gaussian_sd, device)
        terms.append((gaussian_weight, near))
    if bilateral_weight and iterations:
        colour = image.reshape(-1, 3).astype(np.float32) / bilateral_sd_rgb
        alike = Permutohedral(np.concatenate([place / bilateral_sd, colour], axis=1), device)
        terms.append((bilateral_weight, alike))

    # half precision would do to the sums over a thousand pixels what it does not do to the net
    with torch.autocast(device.type, enabled=False):
        if kernel_normalization == "symmetric":
            terms = [(weight, Symmetric(kernel, height * width, device)) for weight, kernel in terms]
        log = probabilities.float().clamp(min=torch.finfo(torch.float32).tiny).log()
        marginals = mean_field(log.view(classes, -1).T.contiguous(), terms, iterations)
        return marginals.T.reshape(classes, height, width)


def mean_field(log_probabilities: Tensor, terms: Sequence[tuple[float, Kernel]], iterations: int) -> Tensor:
    """Mean field of a CRF with Potts pairwise terms, all pixels updated at once.

    Differing from a neighbour costs the weight times the kernel; since the marginals of a pixel sum to 1, that is, up
    to a constant, a gain of as much for agreeing with it.

    Args:
        log_probabilities: float32 (N, K), the negative unary term.
        terms: Weight and kernel (N x N) of each pairwise term.
        iterations: Number of updates.

    Returns:
        Marginals, float32 (N, K).
    """
    marginals = log_probabilities.softmax(1)
    for _ in range(iterations):
        logits = log_probabilities.clone()
        for weight, kernel in terms:
            logits.add_(kernel @ marginals, alpha=weight)
        marginals = logits.softmax(1)
    return marginals


class Gaussian:
    """The Gaussian kernel of the distance of two pixels, as an operator; cut off at five standard deviations.

    Args:
        size: (H, W) of the image.
        sd: Standard deviation in pixels.
        device: Where the values are.
    """

    def __init__(self, size: tuple[int, int], sd: float, device: torch.device | str = "cpu") -> None:
        self.size = size
        reach = math.ceil(5 * sd)
        distance = torch.arange(-reach, reach + 1, dtype=torch.float32, device=device)
        self.profile = torch.exp(-0.5 * (distance / sd) ** 2)

    def __matmul__(self, values: Tensor) -> Tensor:
        """Kernel times values, both float32 (H * W, K)."""
        classes, reach = values.shape[1], len(self.profile) // 2
        # (H * W, K) is what a channels-last map looks like in memory
        maps = values.view(1, *self.size, classes).permute(0, 3, 1, 2)
        profile = self.profile.expand(classes, 1, -1)
        maps = F.conv2d(maps, profile.unsqueeze(3), padding=(reach, 0), groups=classes)
        maps = F.conv2d(maps, profile.unsqueeze(2), padding=(0, reach), groups=classes)
        return maps.permute(0, 2, 3, 1).reshape(-1, classes)


class Symmetric:
    """D^-1/2 K D^-1/2 of a kernel K, where D holds the sums over its rows.

    Args:
        kernel: K.
        count: Number of pixels.
        device: Where the values are.
    """

    def __init__(self, kernel: Kernel, count: int, device: torch.device | str = "cpu") -> None:
        self.kernel = kernel
        self.scale = (kernel @ torch.ones(count, 1, dtype=torch.float32, device=device)).rsqrt()

    def __matmul__(self, values: Tensor) -> Tensor:
        """Kernel times values, both float32 (pixels, classes)."""
        return self.scale * (self.kernel @ (self.scale * values))


def _require(condition: bool, message: str) -> None:
    """Raise a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)
