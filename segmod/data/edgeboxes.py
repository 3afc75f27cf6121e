"""EdgeBoxes (Zitnick and Dollar 2014): boxes that wholly enclose many contours, found by OpenCV."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import cv2
import numpy as np
from annotated_types import Gt, Le

from segmod.data.edges import forest_edges, gradient_edges
from segmod.data.proposals import require_boxes, tidy
from segmod.data.stored import StoredProposals
from segmod.ground.errors import UserError, require
from segmod.ground.types import FloatArray, Images, NotNegative, Positive, UInt8Array

EdgeMap = Literal["gradient", "structured_forest"]
_VERSION = 1  # part of the digest: raise it when the same parameters give other boxes


class EdgeBoxes(StoredProposals):
    """Proposals from edges, about 2000 an image, with the parameters of the authors' code.

    Differs from the paper: by default the edges are those of a smoothed gradient, for the trained forest of the paper
    is a file that OpenCV does not bring along.

    Args:
        root: folder of stored proposals; see `StoredProposals`.
        edges: ``gradient``, or ``structured_forest`` as in the paper, which needs ``model``.
        sigma: smoothing of the gradient in pixels; the forest needs none.
        model: OpenCV's file of the forest: ``model.yml.gz`` of its test data.
        max_boxes: so many of the best.
        alpha: step of the sliding window, as the IoU of neighbours; above 0 and below 1.
        beta: IoU at which the worse of two boxes is dropped; above 0 and at most 1.
        eta: factor of ``beta`` after each box that is kept; above 0 and at most 1.
        min_score: boxes must score so much.
        edge_min_mag: edges below this strength do not count.
        edge_merge_thr: change of direction, summed along a contour, at which a group of edges ends.
        cluster_min_mag: groups of less strength in all are merged with others.
        max_aspect_ratio: of the boxes.
        min_box_area: in pixels.
        gamma: how much a bend counts against two groups belonging together.
        kappa: exponent of the box's size in its score; more favours small boxes less.
        keep: see `StoredProposals`.

    Raises:
        UserError: a value is out of range, the model is missing, or OpenCV was installed without EdgeBoxes.
    """

    def __init__(
        self,
        root: str | Path = "proposals",
        edges: EdgeMap = "gradient",
        sigma: Annotated[float, Gt(0), Le(1000)] = 3.0,
        model: str | Path | None = None,
        max_boxes: Images = 2000,
        alpha: float = 0.65,
        beta: float = 0.75,
        eta: float = 1.0,
        min_score: NotNegative = 0.01,
        edge_min_mag: NotNegative = 0.1,
        edge_merge_thr: NotNegative = 0.5,
        cluster_min_mag: NotNegative = 0.5,
        max_aspect_ratio: Positive = 3.0,
        min_box_area: NotNegative = 1000.0,
        gamma: NotNegative = 2.0,
        kappa: NotNegative = 1.5,
        keep: bool = True,
    ) -> None:
        require(edges in get_args(EdgeMap), f"proposals.edges={edges}: must be one of {', '.join(get_args(EdgeMap))}")
        require(sigma > 0, f"proposals.sigma={sigma}: must be above 0 pixels")
        require(0 < alpha < 1, f"proposals.alpha={alpha}: must be above 0 and below 1")
        for key, value in (("beta", beta), ("eta", eta)):
            require(0 < value <= 1, f"proposals.{key}={value}: must be above 0 and at most 1")
        require(max_aspect_ratio >= 1, f"proposals.max_aspect_ratio={max_aspect_ratio}: must be at least 1")
        require_boxes(max_boxes)
        require_opencv()
        self.settings: dict[str, Any] = {
            "alpha": alpha, "beta": beta, "eta": eta, "minScore": min_score, "maxBoxes": max_boxes,
            "edgeMinMag": edge_min_mag, "edgeMergeThr": edge_merge_thr, "clusterMinMag": cluster_min_mag,
            "maxAspectRatio": max_aspect_ratio, "minBoxArea": min_box_area, "gamma": gamma, "kappa": kappa,
        }  # fmt: skip
        self.sigma = sigma
        self.model = _model_file(model) if edges == "structured_forest" else None
        made_by = {"model_crc32": zlib.crc32(self.model.read_bytes())} if self.model else {"sigma": sigma}
        super().__init__("edgeboxes", root, {"version": _VERSION, "edges": edges, **made_by, **self.settings}, keep)

    def find(self, image: UInt8Array) -> FloatArray:
        """Return the boxes of an image, uint8 (H, W, 3) RGB."""
        edges, direction = forest_edges(image, self.model) if self.model else gradient_edges(image, self.sigma)
        found = cv2.ximgproc.createEdgeBoxes(**self.settings).getBoundingBoxes(edges, direction)
        boxes = np.asarray(found[0], dtype=np.float32).reshape(-1, 4)  # x, y, width, height
        # (N, 1) in OpenCV 4, (N,) in 5, None where there is no box
        scores = np.asarray(found[1] if len(boxes) else [], dtype=np.float32).ravel()
        corners = np.column_stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
        return tidy(np.column_stack([corners, scores]), *image.shape[:2])


def require_opencv() -> None:
    """Check that OpenCV has EdgeBoxes.

    Raises:
        UserError: it has not; says how to mend the installation.
    """
    # Another OpenCV package writes its files into the same folder, and may leave an empty ximgproc behind.
    if not hasattr(getattr(cv2, "ximgproc", None), "createEdgeBoxes"):
        raise UserError(
            "this OpenCV has no EdgeBoxes (cv2.ximgproc): another OpenCV package lies over the contrib one; "
            "pip uninstall -y opencv-python opencv-python-headless, then "
            "pip install --force-reinstall --no-deps opencv-contrib-python-headless"
        )


def _model_file(model: str | Path | None) -> Path:
    where = (
        "take model.yml.gz from github.com/opencv/opencv_extra, folder testdata/cv/ximgproc, and set proposals.model "
        "to it; or choose proposals.edges=gradient, which needs no model"
    )
    require(model is not None, f"proposals.edges=structured_forest needs proposals.model: {where}")
    file = Path(str(model)).expanduser()
    require(file.is_file(), f"proposals.model={model}: no such file; {where}")
    return file
