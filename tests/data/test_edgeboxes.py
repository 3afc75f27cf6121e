"""Edge maps and boxes of scenes whose edges are known."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from segmod.data.edgeboxes import EdgeBoxes, require_opencv
from segmod.data.edges import forest_edges, gradient_edges, thin
from segmod.ground.errors import UserError


def card(height: int = 160, width: int = 200, box: tuple[int, int, int, int] = (60, 40, 140, 110)) -> np.ndarray:
    """A light rectangle on dark ground."""
    image = np.full((height, width, 3), 60, dtype=np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 200
    return image


def test_a_step_is_one_thin_line_facing_across() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 30:] = 250
    edges, direction = gradient_edges(image, sigma=2.0)
    assert edges.dtype == direction.dtype == np.float32
    # The step lies between columns 29 and 30, which are equally strong: rounding says which one stays, or both.
    assert set(np.flatnonzero((edges > 0.1).any(axis=0))) <= {29, 30}
    assert (edges.max(axis=1) > 0.99).all()
    np.testing.assert_allclose(np.cos(direction[:, 29:31]) ** 2, 1, atol=1e-6)  # 0 or pi, along x
    lying = gradient_edges(image.transpose(1, 0, 2).copy(), sigma=2.0)
    assert set(np.flatnonzero((lying[0] > 0.1).any(axis=1))) <= {29, 30}
    assert (lying[0].max(axis=0) > 0.99).all()
    np.testing.assert_allclose(lying[1][29:31], np.pi / 2, atol=1e-6)


def test_any_colour_makes_an_edge_and_no_contrast_none() -> None:
    image = np.full((40, 60, 3), 100, np.uint8)
    image[:, 30:] = (100, 100, 180)  # blue alone
    edges = gradient_edges(image, 2.0)[0]
    assert (edges.max(axis=1) > 0.99).all()
    assert set(np.flatnonzero((edges > 0.1).any(axis=0))) <= {29, 30}
    flat = gradient_edges(np.full((40, 60, 3), 77, np.uint8), 2.0)[0]
    assert not flat.any()


def test_thinning_keeps_the_ridge() -> None:
    strength = np.array([[0.1, 0.4, 0.9, 0.5, 0.2]] * 3, dtype=np.float32)
    across = np.zeros_like(strength)
    np.testing.assert_array_equal(thin(strength, across)[1], np.float32([0, 0, 0.9, 0, 0]))
    # Half-way between across and along it, the neighbours are nearer to the ridge: still only the ridge stays.
    np.testing.assert_array_equal(thin(strength, across + np.float32(1.0))[1], np.float32([0, 0, 0.9, 0, 0]))
    assert thin(np.ones((3, 3), np.float32), np.zeros((3, 3), np.float32)).all()


def test_the_best_box_encloses_the_object(tmp_path: Path) -> None:
    boxes = EdgeBoxes(tmp_path).find(card())
    assert boxes.dtype == np.float32
    assert boxes.shape[1] == 5
    assert (np.diff(boxes[:, 4]) <= 0).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:4] <= (200, 160)).all()
    iou = box_iou(torch.tensor([[60.0, 40.0, 140.0, 110.0]]), torch.from_numpy(boxes[:1, :4]))
    assert iou.item() > 0.85  # a margin of 2 pixels would be 80 * 70 / (84 * 74) = 0.90


def test_keys_reach_opencv(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    plain = EdgeBoxes(tmp_path).find(image)
    assert len(plain) > 50
    assert len(EdgeBoxes(tmp_path, max_boxes=7).find(image)) == 7
    large = EdgeBoxes(tmp_path, min_box_area=6000.0).find(image)
    sides = large[:, 2:4] - large[:, :2]
    assert len(large) < len(plain)
    # refinement and the image's borders may take a little off again
    assert sides.prod(axis=1).min() > 3000 > (plain[:, 2:4] - plain[:, :2]).prod(axis=1).min()
    assert len(EdgeBoxes(tmp_path, min_score=0.1).find(image)) < len(plain)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (33, 17)])
def test_tiny_and_flat_images_have_no_boxes(tmp_path: Path, size: tuple[int, int]) -> None:
    assert EdgeBoxes(tmp_path).find(np.full((*size, 3), 9, np.uint8)).shape == (0, 5)
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert EdgeBoxes(tmp_path).find(noise).shape[1] == 5


def write_forest(path: Path) -> Path:
    """A forest in OpenCV's format whose trees ask one question: is the gradient in the middle of the patch strong?

    Where it is, they mark the middle of the patch, 2 x 2 pixels (as patches lie 2 pixels apart).
    """
    trees, patch, inner, shrink = 8, 32, 16, 2
    options = {
        "stride": 2, "shrinkNumber": shrink, "patchSize": patch, "patchInnerSize": inner,
        "numberOfGradientOrientations": 4, "gradientSmoothingRadius": 0, "regFeatureSmoothingRadius": 2,
        "ssFeatureSmoothingRadius": 8, "gradientNormalizationRadius": 4, "selfsimilarityGridSize": 5,
        "numberOfTrees": trees, "numberOfTreesToEvaluate": 4,
    }  # fmt: skip
    grid = patch // shrink
    magnitude = 3 * grid * grid + grid // 2 * grid + grid // 2  # channel 3, after the three of the colour
    middle = [y * inner + x for y in (7, 8) for x in (7, 8)]
    boundaries = [0]
    for _ in range(trees):  # nodes: question, no, yes
        boundaries += [boundaries[-1], boundaries[-1], boundaries[-1] + len(middle)]
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.startWriteStruct("options", cv2.FILE_NODE_MAP)
    for key, value in options.items():
        storage.write(key, value)
    storage.endWriteStruct()
    content: dict[str, Any] = {
        "childs": [[2, 0, 0]] * trees, "featureIds": [[magnitude, 0, 0]] * trees,
        "thresholds": [[0.05, 0.0, 0.0]] * trees, "edgeBoundaries": [boundaries], "edgeBins": [middle * trees],
    }  # fmt: skip
    for key, rows in content.items():
        storage.startWriteStruct(key, cv2.FILE_NODE_SEQ)
        for row in rows:
            storage.startWriteStruct("", cv2.FILE_NODE_SEQ | cv2.FILE_NODE_FLOW)
            for value in row:
                storage.write("", value)
            storage.endWriteStruct()
        storage.endWriteStruct()
    storage.release()
    return path


def test_structured_forest(tmp_path: Path) -> None:
    model = write_forest(tmp_path / "model.yml.gz")
    edges, direction = forest_edges(card(), model)
    near = np.zeros(edges.shape, dtype=bool)
    near[34:116, 54:146] = True
    near[48:102, 68:132] = False  # a band round the border of the card
    assert (edges[near] > 0).any()
    assert not edges[~near].any()
    upright = edges[60:90, 50:70] > 0
    assert upright.any()
    assert (np.abs(np.cos(direction[60:90, 50:70][upright])) > 0.9).all()

    source = EdgeBoxes(tmp_path / "boxes", edges="structured_forest", model=model, edge_min_mag=0.01)
    box = torch.from_numpy(source.find(card())[:1, :4])
    assert box_iou(torch.tensor([[60.0, 40.0, 140.0, 110.0]]), box).item() > 0.7


def test_the_forest_decides_the_folder_by_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yml.gz", tmp_path / "b.yml.gz"
    first.write_bytes(b"one forest")
    second.write_bytes(b"one forest")
    folders = [EdgeBoxes("x", edges="structured_forest", model=model).folder for model in (first, second)]
    assert folders[0] == folders[1]
    second.write_bytes(b"another")
    assert EdgeBoxes("x", edges="structured_forest", model=second).folder != folders[0]


def test_a_forest_that_is_none(tmp_path: Path) -> None:
    model = tmp_path / "model.yml.gz"
    model.write_bytes(b"no forest at all")
    with pytest.raises(UserError, match=r"proposals\.model=.*model\.yml\.gz: OpenCV cannot read it") as caught:
        EdgeBoxes(tmp_path, edges="structured_forest", model=model).find(card())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"edges": "canny"}, r"proposals\.edges=canny: must be one of gradient, structured_forest"),
        ({"edges": "structured_forest"}, r"needs proposals\.model: .*model\.yml\.gz.*opencv_extra.*edges=gradient"),
        ({"edges": "structured_forest", "model": "no.gz"}, r"proposals\.model=no\.gz: no such file; .*opencv_extra"),
        ({"sigma": 0.0}, r"proposals\.sigma=0"),
        ({"alpha": 1.0}, r"proposals\.alpha=1"),
        ({"beta": 0.0}, r"proposals\.beta=0"),
        ({"eta": 1.5}, r"proposals\.eta=1\.5"),
        ({"max_boxes": 0}, r"proposals\.max_boxes=0"),
        ({"max_aspect_ratio": 0.5}, r"proposals\.max_aspect_ratio=0\.5"),
    ],
)
def test_mistakes_name_the_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EdgeBoxes(**keys)


def test_opencv_without_edgeboxes_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2.ximgproc, "createEdgeBoxes")
    with pytest.raises(UserError, match=r"no EdgeBoxes.*force-reinstall.*opencv-contrib-python-headless"):
        require_opencv()
