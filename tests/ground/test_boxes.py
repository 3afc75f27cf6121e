import numpy as np
import pytest

from segmod.ground.boxes import clip, enlarge


def test_boxes_grow_about_their_centre_and_become_square():
    # 20 x 40 about (20, 40) times 1.2 is 24 x 48; the square has the longer side.
    box = np.array([[10, 20, 30, 60]])
    assert enlarge(box, 1.2, square=False).tolist() == [[8, 16, 32, 64]]
    assert enlarge(box, 1.2, square=True).tolist() == [[-4, 16, 44, 64]]
    # 5 times 1.2 is 6; from the centre 2.5 three to each side is -0.5, rounded up to 0
    assert enlarge(np.array([[0, 0, 5, 5]]), 1.2).tolist() == [[0, 0, 6, 6]]
    assert enlarge(np.array([[3, 3, 4, 4]]), 0.1).tolist() == [[3, 3, 4, 4]]  # never without a pixel


@pytest.mark.parametrize(
    ("box", "context", "square", "expected"),
    [
        # 13 x 4 times 1.2 is 15.6 x 4.8, rounded 16 x 5; about (6.5, 2) from -1.5 and -0.5, halves upwards: -1 and 0
        ([0, 0, 13, 4], 1.2, False, [-1, 0, 15, 5]),
        # the longer side for both: 16 x 16 from -1.5 and -6, halves upwards: -1 and -6
        ([0, 0, 13, 4], 1.2, True, [-1, -6, 15, 10]),
        # 3 x 3 times 1.5 is 4.5, halves upwards 5, which about 1.5 begins at -1
        ([0, 0, 3, 3], 1.5, True, [-1, -1, 4, 4]),
        # boxes need not be whole: 2.4 x 2.4 about 1.6, side 2, from 0.6: 1 (0 if it were cut off)
        ([0.4, 0.4, 2.8, 2.8], 1.0, True, [1, 1, 3, 3]),
    ],
)
def test_sides_are_rounded_first_and_then_the_corner(box, context, square, expected):
    enlarged = enlarge(np.array([box]), context, square)
    assert enlarged.dtype == np.int32
    assert enlarged.tolist() == [expected]


def test_a_box_has_the_same_size_wherever_it_lies():
    # corners rounded one by one would give 4 or 5 pixels for the side 4.5, by the place
    boxes = np.array([[0, 0, 3, 3]]) + np.arange(6)[:, None] * 0.25
    enlarged = enlarge(boxes, 1.5)
    assert (enlarged[:, 2:] - enlarged[:, :2] == 5).all()


def test_no_box_is_none():
    assert enlarge(np.empty((0, 4))).shape == (0, 4)


def test_boxes_are_cut_off_at_the_borders():
    # an image of 20 rows and 30 columns; the last box lies outside and has no width left
    boxes = np.array([[-3.5, 2, 31, 25], [4, 5, 6, 7], [35, 1, 40, 3]], dtype=np.float32)
    clipped = clip(boxes, 20, 30)
    assert clipped.tolist() == [[0, 2, 30, 20], [4, 5, 6, 7], [30, 1, 30, 3]]
    assert clipped.dtype == np.float32
