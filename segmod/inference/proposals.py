"""Scoring an image by the boxes that may hold its objects."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segmod.ground.boxes import Int32Array, clip, enlarge
from segmod.ground.errors import UserError
from segmod.ground.types import IGNORE_INDEX, Amount, Batch, Count, Factor, ProposalSource, Side, picture_of
from segmod.nets.ops import resize

log = logging.getLogger(__name__)

_TIE = 1e-6  # what the background is given where no class has a score


class ProposalPredictor:
    """Scores of the best boxes, put together on one canvas (Noh, Hong, Han 2015, sec. 5.3; released inference script).

    Each box is enlarged, cut out of the image, scored by the net as a square, and its raw scores are brought back to
    the box's place and size. The canvas starts at 0 and takes, at each pixel, the maximum (eq. 1) or the sum (eq. 2)
    over the boxes that hold the pixel; the softmax comes once, after the last box. Pixels whose canvas is still 0 are
    background: of the equal probabilities its is made larger by a hair.

    Boxes reach beyond the image by their enlargement alone, for they are clipped to it first; what they find there is
    black. As in the released script, boxes are skipped by the size they have once enlarged, and those skipped do not
    count among ``max_proposals``. Crops larger than ``size`` shrink with anti-aliasing, as in its MATLAB. One canvas
    and one batch of crops are held in memory, however many boxes there are.

    Differs from the paper: the released script's result is shifted by a pixel, here it is not.

    Args:
        proposals: Where the boxes come from.
        max_proposals: Boxes to score, best first; None for all.
        min_side: Boxes whose shorter side has fewer pixels are skipped; 0 or None for none.
        extend: Factor on both sides of a box, about its centre; at least 1.
        square: Whether the longer side then counts for both, as in the training crops. The script's rule about the
            shorter side says that its boxes were no squares; they are squashed.
        size: Side in pixels of the square that the net sees.
        aggregate: ``max`` or ``sum``.
        batch_size: Crops the net sees at a time.
        antialias: Whether every pixel of a crop counts where it shrinks; training crops do so by ``data.antialias``.

    Raises:
        UserError: A value makes no sense.
    """

    def __init__(
        self,
        proposals: ProposalSource,
        max_proposals: Count | None = 50,
        min_side: Amount | None = 112,
        extend: Factor = 1.2,
        square: bool = False,
        size: Side = 224,
        aggregate: str = "max",
        batch_size: Count = 10,
        antialias: bool = True,
    ) -> None:
        for key, value, least in (
            ("max_proposals", max_proposals, 1),
            ("min_side", min_side, 0),
            ("extend", extend, 1),
            ("size", size, 1),
            ("batch_size", batch_size, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"inference.{key}={value}: must be at least {least}")
        if aggregate not in ("max", "sum"):
            raise UserError(f"inference.aggregate={aggregate}: choose max or sum")
        self.proposals = proposals
        self.max_proposals = max_proposals
        self.min_side = min_side or 0
        self.extend = extend
        self.square = square
        self.size = size
        self.aggregate = aggregate
        self.batch_size = batch_size
        self.antialias = antialias
        self._warned = False

    def __call__(self, net: nn.Module, batch: Batch) -> Tensor:
        """Class probabilities, float32 (B, K, H, W), of ``batch['image']`` (B, 3, H, W)."""
        return probabilities_of(self.logits(net, batch))

    @torch.no_grad()
    def logits(self, net: nn.Module, batch: Batch) -> Tensor:
        """The canvas before the softmax, float32 (B, K, H, W); 0 where no box was."""
        boxes = self._boxes(batch)
        canvas = self._canvas(net, batch["image"])
        for image, own, chosen in zip(batch["image"], canvas, boxes, strict=True):
            self._add(net, image, own, chosen)
        return canvas

    def progressive(self, net: nn.Module, batch: Batch, counts: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """The same boxes, the largest first: what the first few of them give (Noh, Hong, Han 2015, Fig. 6).

        Args:
            net: Maps image (B, 3, h, w) to logits (B, K, h, w).
            batch: As for a call.
            counts: Numbers of boxes after which to look, ascending. An image with fewer boxes stays as it is.

        Yields:
            Each count, with class probabilities, float32 (B, K, H, W).
        """
        boxes = [chosen[np.argsort(-_areas(chosen), kind="stable")] for chosen in self._boxes(batch)]
        canvas = self._canvas(net, batch["image"])
        done = 0
        for count in counts:
            with torch.no_grad():
                for image, own, chosen in zip(batch["image"], canvas, boxes, strict=True):
                    self._add(net, image, own, chosen[done:count])
                probabilities = probabilities_of(canvas.clone())
            done = count
            yield count, probabilities

    def select(self, proposals: NDArray[np.float32], height: int, width: int) -> Int32Array:
        """Choose and enlarge the boxes to score.

        Args:
            proposals: (N, 5), x1 y1 x2 y2 score, in pixels, x2 and y2 exclusive.
            height: Of the image, in pixels.
            width: Of the image, in pixels.

        Returns:
            (n, 4) x1 y1 x2 y2, whole pixels, best first; each holds some of the image and may reach beyond it.
        """
        proposals = proposals[np.isfinite(proposals).all(1)]
        proposals = proposals[np.argsort(-proposals[:, 4], kind="stable")].astype(np.float64)
        boxes = clip(proposals[:, :4], height, width)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        chosen = enlarge(boxes, self.extend, self.square)
        large = (chosen[:, 2:] - chosen[:, :2]).min(1) >= self.min_side
        best: Int32Array = chosen[large][: self.max_proposals]
        return best

    def _boxes(self, batch: Batch) -> list[Int32Array]:
        """The boxes of each image; warns once if an image has none."""
        found = []
        for image, mask, name in zip(batch["image"], batch["mask"], batch["name"], strict=True):
            picture, labels = picture_of(image), mask.cpu().numpy()
            truth = labels if (labels != IGNORE_INDEX).any() else None
            found.append(self.select(self.proposals(name, picture, truth), *picture.shape[:2]))
            if not len(found[-1]) and not self._warned:
                self._warned = True
                log.warning(
                    "image %s has no box of %d pixels or more: all of it is background (told once; see "
                    "inference.min_side and the proposals)",
                    name or "without a name",
                    self.min_side,
                )
        return found

    def _canvas(self, net: nn.Module, image: Tensor) -> Tensor:
        classes = int(net.num_classes)  # type: ignore[arg-type]
        return image.new_zeros(len(image), classes, *image.shape[-2:], dtype=torch.float32)

    def _add(self, net: nn.Module, image: Tensor, canvas: Tensor, boxes: Int32Array) -> None:
        """Put the scores of boxes on the canvas (K, H, W) of an image (3, H, W), in place."""
        if not len(boxes):
            return
        height, width = image.shape[-2:]
        margin = max(0, -int(boxes[:, :2].min()), int((boxes[:, 2:] - (width, height)).max()))
        padded = image.new_zeros(3, height + 2 * margin, width + 2 * margin)
        padded[:, margin : margin + height, margin : margin + width] = image
        for start in range(0, len(boxes), self.batch_size):
            group = boxes[start : start + self.batch_size].tolist()
            crops = [padded[None, :, y1 + margin : y2 + margin, x1 + margin : x2 + margin] for x1, y1, x2, y2 in group]
            side = (self.size, self.size)
            seen = torch.cat([resize(crop.float(), side, antialias=self.antialias) for crop in crops])
            self._paste(canvas, net(seen), group)  # so that no scores are held while the next ones are computed

    def _paste(self, canvas: Tensor, logits: Tensor, boxes: Sequence[tuple[int, int, int, int]]) -> None:
        """Bring the scores of crops (n, K, size, size) to their boxes and put them on a canvas, in place."""
        for own, (x1, y1, x2, y2) in zip(logits, boxes, strict=True):
            top, left = max(0, -y1), max(0, -x1)
            window = canvas[:, y1 + top : y2, x1 + left : x2]  # ends where the canvas does
            scores = resize(own[None].float(), (y2 - y1, x2 - x1))[0, :, top:, left:]
            scores = scores[:, : window.shape[1], : window.shape[2]]
            if self.aggregate == "max":
                torch.maximum(window, scores, out=window)
            else:
                window += scores


def probabilities_of(scores: Tensor) -> Tensor:
    """Softmax in which the background is ahead where all classes have the same score.

    Args:
        scores: float32 (B, K, H, W), class 0 is the background; changed in place.

    Returns:
        (B, K, H, W).
    """
    scores[:, 0] += _TIE
    return scores.softmax(1)


def _areas(boxes: Int32Array) -> Int32Array:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
