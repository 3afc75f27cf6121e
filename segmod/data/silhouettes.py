"""How the synthetic scenes draw each of the 20 object classes of VOC: an outline, two colours and a texture."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Polygon = npt.NDArray[np.float32]  # (N, 2) corners x, y in -1..1, y down


class Look(NamedTuple):
    """The appearance of one class."""

    outline: tuple[Polygon, ...]  # the object is the union of these
    colour: tuple[int, int, int]  # RGB
    second: tuple[int, int, int]  # RGB of the texture's other phase
    texture: str  # plain, stripes, bars, checks or dots


def _ellipse(x: float, y: float, rx: float, ry: float) -> Polygon:
    angle = np.linspace(0.0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1).astype(np.float32)


def _polygon(*corners: tuple[float, float]) -> Polygon:
    return np.array(corners, dtype=np.float32)


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _quadruped(head: Polygon, *extra: Polygon) -> tuple[Polygon, ...]:
    legs = (_box(-0.6, 0.2, -0.4, 0.9), _box(-0.25, 0.2, -0.05, 0.9), _box(0.3, 0.2, 0.5, 0.9))
    return (_ellipse(-0.1, 0.1, 0.65, 0.4), *legs, head, *extra)


def _wheels(radius: float) -> tuple[Polygon, Polygon]:
    return _ellipse(-0.55, 0.5, radius, radius), _ellipse(0.55, 0.5, radius, radius)


_STROKE = _polygon(
    (-0.6, 0.4), (-0.2, -0.2), (0.3, -0.2), (0.6, 0.4), (0.45, 0.5), (0.2, 0.05), (-0.1, 0.05), (-0.4, 0.5)
)

LOOKS: tuple[Look, ...] = (
    # aeroplane
    Look(
        (
            _ellipse(0, 0, 0.95, 0.18),
            _polygon((0.2, 0), (-0.3, -0.8), (-0.5, -0.8), (-0.2, 0), (-0.5, 0.8), (-0.3, 0.8)),
            _polygon((-0.6, 0), (-0.85, -0.4), (-1, -0.4), (-0.9, 0)),
        ),
        (225, 230, 240), (150, 160, 180), "plain",
    ),
    # bicycle
    Look((*_wheels(0.42), _STROKE, _box(-0.3, -0.5, 0, -0.35)), (40, 220, 60), (10, 90, 20), "plain"),
    # bird
    Look(
        (
            _ellipse(0, 0.1, 0.6, 0.35),
            _ellipse(0.6, -0.25, 0.25, 0.22),
            _polygon((0.8, -0.3), (1, -0.2), (0.8, -0.12)),
            _polygon((-0.5, 0), (-1, -0.2), (-0.95, 0.3)),
            _polygon((-0.2, 0), (-0.5, -0.8), (0.2, -0.1)),
        ),
        (250, 210, 20), (120, 60, 0), "bars",
    ),
    # boat
    Look(
        (
            _polygon((-1, 0.3), (1, 0.3), (0.65, 0.8), (-0.7, 0.8)),
            _polygon((0, -0.95), (0.7, 0.2), (0, 0.2)),
            _box(-0.08, -0.95, 0.02, 0.35),
        ),
        (240, 240, 250), (30, 60, 220), "stripes",
    ),
    # bottle
    Look((_box(-0.3, -0.2, 0.3, 0.95), _box(-0.12, -0.95, 0.12, -0.1), _ellipse(0, -0.2, 0.3, 0.25)),
         (10, 120, 70), (120, 220, 160), "bars"),
    # bus
    Look((_box(-0.95, -0.6, 0.95, 0.55), *_wheels(0.22)), (230, 40, 30), (250, 230, 230), "checks"),
    # car
    Look((_box(-0.95, -0.05, 0.95, 0.45), _polygon((-0.6, 0), (-0.35, -0.5), (0.35, -0.5), (0.65, 0)), *_wheels(0.25)),
         (200, 20, 120), (90, 10, 60), "plain"),
    # cat
    Look(
        (
            _ellipse(0, 0.35, 0.5, 0.6),
            _ellipse(0, -0.35, 0.4, 0.35),
            _polygon((-0.4, -0.4), (-0.35, -0.95), (-0.05, -0.6)),
            _polygon((0.4, -0.4), (0.35, -0.95), (0.05, -0.6)),
        ),
        (240, 140, 40), (110, 50, 10), "stripes",
    ),
    # chair
    Look(
        (_box(-0.55, -0.95, -0.35, 0.95), _box(-0.55, 0.0, 0.6, 0.2), _box(0.4, 0.1, 0.6, 0.95),
         _box(-0.5, -0.9, -0.05, -0.3)),
        (120, 70, 30), (180, 130, 80), "bars",
    ),
    # cow
    Look(_quadruped(_ellipse(0.7, -0.15, 0.28, 0.3), _polygon((0.55, -0.4), (0.5, -0.7), (0.7, -0.4))),
         (245, 245, 245), (20, 20, 20), "dots"),
    # diningtable
    Look((_ellipse(0, -0.3, 0.95, 0.3), _box(-0.12, -0.2, 0.12, 0.8), _ellipse(0, 0.8, 0.45, 0.15)),
         (160, 90, 40), (90, 40, 20), "stripes"),
    # dog
    Look(
        _quadruped(_box(0.4, -0.6, 0.95, -0.1), _polygon((0.4, -0.6), (0.3, -0.1), (0.5, -0.3)),
                   _polygon((-0.7, 0), (-1, -0.5), (-0.6, -0.15))),
        (190, 150, 90), (250, 220, 170), "dots",
    ),
    # horse
    Look(
        _quadruped(_polygon((0.3, -0.1), (0.55, -0.9), (0.95, -0.6), (0.85, -0.45), (0.65, 0.1)),
                   _polygon((-0.7, 0), (-1, 0.5), (-0.65, 0.3))),
        (100, 40, 20), (60, 20, 10), "plain",
    ),
    # motorbike
    Look((*_wheels(0.38), _polygon((-0.8, 0.2), (-0.5, -0.25), (0.5, -0.25), (0.7, 0.4), (-0.4, 0.5)),
          _box(0.3, -0.6, 0.5, 0)),
         (30, 30, 40), (230, 60, 20), "checks"),
    # person
    Look(
        (_ellipse(0, -0.72, 0.22, 0.25), _box(-0.32, -0.45, 0.32, 0.25), _box(-0.3, 0.2, -0.04, 0.97),
         _box(0.04, 0.2, 0.3, 0.97), _box(-0.5, -0.42, -0.3, 0.2), _box(0.3, -0.42, 0.5, 0.2)),
        (250, 190, 160), (60, 80, 200), "bars",
    ),
    # pottedplant
    Look(
        (_polygon((-0.4, 0.3), (0.4, 0.3), (0.3, 0.95), (-0.3, 0.95)), _ellipse(0, -0.3, 0.55, 0.35),
         _ellipse(-0.4, -0.1, 0.35, 0.25), _ellipse(0.4, -0.1, 0.35, 0.25), _ellipse(0, -0.7, 0.3, 0.25)),
        (20, 150, 20), (170, 230, 40), "dots",
    ),
    # sheep
    Look(
        _quadruped(_ellipse(0.65, -0.1, 0.22, 0.25), _ellipse(-0.45, -0.15, 0.3, 0.25), _ellipse(0, -0.25, 0.35, 0.25)),
        (240, 230, 210), (190, 175, 150), "dots",
    ),
    # sofa
    Look((_box(-0.95, -0.1, 0.95, 0.6), _box(-0.75, -0.6, 0.75, 0.1), _box(-0.95, -0.3, -0.7, 0.6),
          _box(0.7, -0.3, 0.95, 0.6)),
         (130, 40, 190), (190, 130, 240), "checks"),
    # train
    Look((_polygon((-1, -0.5), (0.6, -0.5), (1, 0.1), (1, 0.5), (-1, 0.5)), _box(-1, 0.4, 0.9, 0.65)),
         (20, 190, 210), (240, 250, 90), "stripes"),
    # tvmonitor
    Look((_box(-0.9, -0.75, 0.9, 0.5), _box(-0.12, 0.4, 0.12, 0.75), _box(-0.5, 0.7, 0.5, 0.9)),
         (20, 25, 60), (60, 130, 255), "bars"),
)  # fmt: skip
"""Entry k - 1 draws class k."""
