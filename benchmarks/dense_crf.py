"""The dense CRF against pydensecrf2 (the code of its authors), where that can be imported.

    python benchmarks/dense_crf.py [--image PHOTO ...] [--rounds 3] [--threads 1] [--device cpu]

21 classes, 10 iterations, the weights of DeconvNet. Both make the marginals of the same photo and the same
probabilities (smooth blobs with noise), in one process in the order A B B A, and keep freed memory as the commands do;
ratios are of the smallest CPU and wall-clock times, set-up included. Without a photo, a drawn scene of 500 x 375 pixels
with grain stands in. pydensecrf2 builds from its source on Python 3.11 and 3.12; it may lie outside the environment, in
a folder on PYTHONPATH. With --device, the time includes the copy there and back.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmod.ground.memory import keep_freed_memory
from segmod.inference.crf import dense_crf
from segmod.inference.permutohedral import Permutohedral
from segmod.measure import in_turns

try:
    from pydensecrf import densecrf
except ImportError:
    densecrf = None

CLASSES = 21
Image = NDArray[np.uint8]


def scene() -> Image:
    """Blobs of colour with shading and grain."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(30, 220, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC) + rng.normal(0, 4, (375, 500, 3))
    image[100:250, 150:330] += 60
    return np.asarray(image.clip(0, 255), dtype=np.uint8)


def probabilities_for(image: Image) -> Tensor:
    """What a net might say: regions of some 16 pixels, and noise."""
    height, width = image.shape[:2]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, CLASSES, height // 16 + 1, width // 16 + 1, generator=generator)
    logits = 3 * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (logits + torch.randn(CLASSES, height, width, generator=generator)).softmax(0)


def ours(probabilities: Tensor, image: Image, device: str, **settings: Any) -> Tensor:
    return dense_crf(probabilities.to(device), image, **settings).cpu()


def theirs(probabilities: Tensor, image: Image, kind: str) -> Tensor:
    classes, height, width = probabilities.shape
    kinds = {"none": densecrf.NO_NORMALIZATION, "symmetric": densecrf.NORMALIZE_SYMMETRIC}
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-probabilities.log().view(classes, -1).numpy()))
    crf.addPairwiseGaussian(3, 3, densecrf.CONST_KERNEL, kinds[kind])
    crf.addPairwiseBilateral(20, 3, image, 5, densecrf.CONST_KERNEL, kinds[kind])
    return torch.from_numpy(np.array(crf.inference(10))).view(classes, height, width)


def report(image: Image, name: str, rounds: int, device: str) -> None:
    probabilities = probabilities_for(image)
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    features = np.dstack([columns / 20, rows / 20, image / 3]).reshape(-1, 5).astype(np.float32)
    print(f"{name}: {width} x {height}, {Permutohedral(features).size} lattice points")
    for kind in ("none", "symmetric"):
        work: dict[str, Callable[[], Tensor]] = {
            "segmod": partial(ours, probabilities, image, device, kernel_normalization=kind),
            "1 iteration": partial(ours, probabilities, image, device, kernel_normalization=kind, iterations=1),
            "exact distance": partial(
                ours, probabilities, image, device, kernel_normalization=kind, gaussian_kernel="exact"
            ),
        }
        if densecrf is not None:
            work["pydensecrf2"] = partial(theirs, probabilities, image, kind)
        results = {variant: run() for variant, run in work.items()}
        best = in_turns(work, rounds)
        for variant, (wall, cpu) in best.items():
            line = f"  {kind:10} {variant:15} {wall:7.3f} s wall {cpu:7.3f} s CPU"
            if densecrf is not None and variant in ("segmod", "exact distance"):
                found, reference = results[variant], results["pydensecrf2"]
                difference = (found - reference).abs()
                agree = float((found.argmax(0) == reference.argmax(0)).float().mean())
                line += f"   ratio {wall / best['pydensecrf2'][0]:.2f} wall {cpu / best['pydensecrf2'][1]:.2f} CPU"
                line += f"; marginals differ by {difference.max():.1e} at most, {difference.mean():.1e} in the mean;"
                line += f" labels equal in {100 * agree:.3f} % of pixels"
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if densecrf is None:
        print("pydensecrf2 cannot be imported: no comparison")
    for path in options.image:
        report(np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]), path.name, options.rounds, options.device)
    if not options.image:
        report(scene(), "drawn scene", options.rounds, options.device)


if __name__ == "__main__":
    main()
