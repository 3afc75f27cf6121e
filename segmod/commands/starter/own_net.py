"""A net of one's own: a small encoder and decoder."""

import torch.nn.functional as F
from torch import Tensor, nn

from segmod.nets.normalise import Normalise


class OwnNet(nn.Module):
    """Maps an image (B, 3, H, W), RGB in 0..255, to logits (B, K, H, W) of the same size.

    Args:
        num_classes: K; the data set says it.
        width: Channels of the first layer. Each argument is a key of ``model.net``.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalise = Normalise()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.score = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Score the pixels at a quarter of the size, and enlarge the scores."""
        scores = self.score(self.encoder(self.normalise(image)))
        return F.interpolate(scores, image.shape[-2:], mode="bilinear")
