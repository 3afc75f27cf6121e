"""Proposals that take long to find and are therefore kept: one file an image, apart for each choice of parameters."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segmod.data.passes import Job, over_images
from segmod.data.proposals import read_npz
from segmod.ground.boxes import clip
from segmod.ground.errors import UserError
from segmod.ground.files import replace_text, replacing
from segmod.ground.types import FloatArray, UInt8Array


class StoredProposals(ABC):
    """A source whose boxes are stored at ``<root>/<source>-<digest>/<name>.npz``; a subclass gives `find`.

    The digest is that of all parameters, so boxes made with others are never mixed in. A file holds ``boxes``, float32
    (N, 5), and the size and checksum of the image they are of: another image of the same name, or a file that cannot be
    read, is found anew. Files are written beside their place and moved there whole, so any number of processes may
    share a folder, and nothing is half-written when they are stopped.

    Args:
        source: short name of the method.
        root: folder of all stored proposals.
        parameters: everything that changes the boxes, with the version of the method; values as JSON knows them.
        keep: store what is found; False reads what is there, and writes nothing.
    """

    def __init__(self, source: str, root: str | Path, parameters: Mapping[str, Any], keep: bool = True) -> None:
        self.keep = keep
        self.parameters = dict(parameters)
        digest = hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = Path(root).expanduser() / f"{source}-{digest}"

    @abstractmethod
    def find(self, image: UInt8Array) -> FloatArray:
        """Return the boxes of an image, all inside it, as `segmod.ground.types.ProposalSource`."""

    def __call__(self, name: str, image: UInt8Array, mask: UInt8Array | None = None) -> FloatArray:
        """Return the stored boxes, or find and store them; see `segmod.ground.types.ProposalSource`."""
        if not name:
            return self.find(image)
        boxes = self.load(name, image)
        if boxes is None:
            boxes = self.find(image)
            if self.keep:
                self._store(name, image, boxes)
        return boxes

    def path(self, name: str) -> Path:
        """Return where the boxes of an image are kept."""
        return self.folder / f"{name}.npz"

    def load(self, name: str, image: UInt8Array) -> FloatArray | None:
        """Return the stored boxes of an image, or None where there are none, or none that can be trusted."""
        try:
            boxes, size, crc32 = read_npz(self.path(name), "boxes", "size", "crc32")
            if tuple(size) != image.shape[:2] or int(crc32) != _checksum(image):
                return None
        except Exception:  # whatever a damaged file can cause
            return None
        if boxes.ndim != 2 or boxes.shape[1] != 5 or boxes.dtype != np.float32 or not np.isfinite(boxes).all():
            return None
        corners = boxes[:, :4]
        inside = (clip(corners, *image.shape[:2]) == corners).all() and (corners[:, :2] < corners[:, 2:]).all()
        return boxes if inside else None

    def _store(self, name: str, image: UInt8Array, boxes: FloatArray) -> None:
        path = self.path(name)
        try:
            if not (self.folder / "parameters.json").exists():
                replace_text(self.folder / "parameters.json", json.dumps(self.parameters, indent=2) + "\n")
            size, crc32 = np.array(image.shape[:2]), np.array(_checksum(image), dtype=np.uint32)
            with replacing(path) as file:
                np.savez_compressed(file, boxes=boxes, size=size, crc32=crc32)
        except OSError as error:
            raise UserError(
                f"{path}: cannot store the proposals ({error.strerror}); set proposals.root to another folder"
            ) from error


class Made(NamedTuple):
    """What `make_proposals` did.

    Attributes:
        images: of the splits, each counted once.
        found: of them, those whose boxes were not there yet.
        boxes: of all images.
        seconds: of CPU time spent on the found ones, by all workers together.
    """

    images: int
    found: int
    boxes: int
    seconds: float


def make_proposals(source: StoredProposals, jobs: Sequence[Job], workers: int | None = None) -> Made:
    """Find and store the boxes of every image that has none yet, or none that fit it.

    Stopped, it ends the images in work and leaves no file half-written; called again, it goes on.

    Args:
        source: of the boxes.
        jobs: as `segmod.data.passes.jobs_of` returns them.
        workers: images at a time; None for one a core.

    Raises:
        UserError: an image cannot be read, or the boxes not be stored; the others are done all the same.
    """

    def find(job: Job) -> tuple[int, float | None]:
        split, index = job
        name, image = split.names[index], split.read(index)[0]
        stored = source.load(name, image)
        if stored is not None:
            return len(stored), None
        started = time.thread_time()  # of this thread alone, and whatever else the machine does
        return len(source(name, image)), time.thread_time() - started

    results = list(over_images(find, jobs, "Finding proposals", workers))
    seconds = [spent for _, spent in results if spent is not None]
    return Made(len(jobs), len(seconds), sum(count for count, _ in results), sum(seconds))


def _checksum(image: UInt8Array) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data)
