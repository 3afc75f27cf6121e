"""U-Net (Ronneberger, Fischer and Brox 2015) as a user of segmod writes it, by the README alone.

Differs from the paper: convolutions are padded, so that logits have the size of the image, and maps are enlarged by
repeating their pixels.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmod.nets.normalise import Normalise


class UNet(nn.Module):
    def __init__(self, num_classes: int, channels: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.normalise = Normalise()
        down, up = (3, channels, 2 * channels, 4 * channels), (4 * channels, 2 * channels, channels)
        self.down = nn.ModuleList(block(i, o) for i, o in pairwise(down))
        self.up = nn.ModuleList(block(i + o, o) for i, o in pairwise(up))
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(channels, num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps, skips = self.normalise(image), []
        for layers in self.down:
            maps = layers(F.max_pool2d(maps, 2, ceil_mode=True) if skips else maps)
            skips.append(maps)
        maps = self.dropout(skips.pop())
        for layers in self.up:
            skip = skips.pop()
            maps = layers(torch.cat([skip, F.interpolate(maps, skip.shape[-2:])], dim=1))
        return self.score(maps)


def block(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
