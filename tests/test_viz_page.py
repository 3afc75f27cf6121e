import numpy as np
from PIL import Image

from segmod.charts import page


def drawn(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=int)


def test_tiles_stand_where_they_were_put(tmp_path):
    red, blue = (np.full((20, 30, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    page([[red, None], [None, blue]], tmp_path / "deep" / "page.png", columns=["left", "right"], labels=["up", "down"])
    picture = drawn(tmp_path / "deep" / "page.png")
    reds = np.argwhere((picture == (255, 0, 0)).all(-1)).mean(0)
    blues = np.argwhere((picture == (0, 0, 255)).all(-1)).mean(0)
    assert (reds < blues).all()  # red up and left, blue down and right


def test_maps_are_drawn_from_0_to_1_whatever_their_values(tmp_path):
    """Black is the first of magma's colours: a map of 0.5 alone must not show as black, nor one of 1."""
    for value in (0.0, 0.5, 1.0):
        page([[np.full((10, 10), value, np.float32)]], tmp_path / f"{value}.png")
    middles = [drawn(tmp_path / f"{value}.png") for value in (0.0, 0.5, 1.0)]
    brightness = [picture[picture.shape[0] // 2, picture.shape[1] // 2].sum() for picture in middles]
    assert brightness[0] < 10 < brightness[1] < brightness[2]


def test_rows_of_unequal_length_and_a_colour_bar(tmp_path):
    tile = np.zeros((10, 40), np.float32)
    page([[tile] * 3, [tile]], tmp_path / "page.png")
    page([[tile] * 3, [tile]], tmp_path / "bar.png", bar="probability")
    assert drawn(tmp_path / "bar.png").shape[1] > drawn(tmp_path / "page.png").shape[1]
