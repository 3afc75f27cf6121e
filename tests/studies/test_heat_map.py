"""Where a classifier of known answers sees a class."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segmod.ground.errors import UserError
from segmod.studies.heat_map import HeatMap


class Bright(nn.Module):
    """Of each 8 x 8 window: sure of class 281 (tabby) where it is white, of class 0 where it is black."""

    def forward(self, image):
        mean = nn.functional.avg_pool2d(image.mean(1, keepdim=True) / 255, 8)
        scores = torch.zeros(1, 1000, *mean.shape[2:])
        scores[:, 281], scores[:, 0] = 50 * mean[:, 0], 50 * (1 - mean[:, 0])
        return scores


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """Black, of 32 x 48 pixels, with a white square in the third row and fifth column of the windows."""
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[16:24, 32:40] = 255
    Image.fromarray(picture).save(tmp_path / "photo.png")
    monkeypatch.setattr("segmod.studies.heat_map.heat_map_net", lambda *_: Bright())
    return str(tmp_path / "photo.png")


def test_the_map_is_hot_where_the_class_is(photo, tmp_path):
    (row,) = HeatMap([photo], classes=["tabby"])({}, tmp_path)
    assert (row["image"], row["class"], row["windows"]) == ("photo", "tabby", "4 x 6")
    assert row["largest p"] == pytest.approx(1)
    assert (row["down"], row["across"]) == (2.5 / 4, 4.5 / 6)
    picture = np.asarray(Image.open(tmp_path / "heat_map.png").convert("RGB"), int)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100  # the colour bar alone has 256
    (row,) = HeatMap([photo], scale=2)({}, tmp_path)  # the class that most windows show
    assert (row["class"], row["windows"]) == ("tench", "8 x 12")
    table = HeatMap([photo, photo], classes=["tabby", 0])({}, tmp_path)
    assert [row["class"] for row in table] == ["tabby", "tench"] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": []}, r"study\.images is required"),
        ({"scale": 0}, r"study\.scale=0: must be a factor above 0"),
        ({"images": ["none.jpg"]}, r"study\.images=none\.jpg: cannot be read"),
        ({"classes": ["retriver"]}, r"study\.classes=retriver: no class of ImageNet; there are tabby"),
        ({"classes": ["egyptian"]}, r"no class of ImageNet; there are Egyptian cat"),
        ({"classes": [1000]}, r"study\.classes=1000: no class of ImageNet"),
        ({"scale": 0.1}, r"photo\.png has 5x3 pixels, less than the classifier sees at once; give study\.scale=0\.2"),
    ],
)
def test_mistakes_name_their_key(photo, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        HeatMap(**{"images": [photo], **given})({}, tmp_path)


def test_weights_are_told_by_the_key_of_the_study(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"^study\.weights=nowhere\.pth is neither a file nor weights"):
        HeatMap([str(tmp_path / "photo.png")], "squeezenet1_0", "nowhere.pth")({}, tmp_path)
