"""What conf/model/smp.yaml asks of the package of this name: scores as large as the image, of sides of whole 32s."""

from torch import nn


class Unet(nn.Module):
    def __init__(self, encoder_name="resnet34", encoder_weights="imagenet", classes=1):
        super().__init__()
        assert encoder_weights is None, "nothing is downloaded in a test"
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=32, padding=1), nn.ReLU(), nn.Upsample(scale_factor=32), nn.Conv2d(8, classes, 1)
        )

    def forward(self, x):
        if x.shape[2] % 32 or x.shape[3] % 32:
            raise RuntimeError("Wrong input shape. Expected image height and width divisible by 32.")
        return self.layers(x)
