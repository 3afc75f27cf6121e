"""Work on every image of some datasets over all cores, with progress; the proposals of a dataset made in advance."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import track

from segmod.data.base import SegmentationDataset
from segmod.data.order import cores
from segmod.data.stored import StoredProposals
from segmod.ground.errors import UserError, require

_SHOWN = 10
Result = TypeVar("Result")
Job = tuple[SegmentationDataset, int]
"""A dataset and the index of one of its images."""


class Made(NamedTuple):
    """What `make_proposals` did.

    Attributes:
        images: of the datasets, each counted once.
        found: of them, those whose boxes were not there yet.
        boxes: of all images.
        seconds: of CPU time spent on the found ones, by all workers together.
    """

    images: int
    found: int
    boxes: int
    seconds: float


def jobs_of(datasets: Sequence[SegmentationDataset], limit: int | None = None) -> list[Job]:
    """Return the images of some datasets, those of the same name once.

    Args:
        datasets: in the order wanted.
        limit: the first so many; None for all.
    """
    require(limit is None or limit >= 1, f"limit={limit}: must be at least 1, or null for all images")
    jobs = {dataset.names[index]: (dataset, index) for dataset in datasets for index in range(len(dataset))}
    return list(islice(jobs.values(), limit))


def make_proposals(source: StoredProposals, jobs: Sequence[Job], workers: int | None = None) -> Made:
    """Find and store the boxes of every image that has none yet, or none that fit it.

    Stopped, it ends the images in work and leaves no file half-written; called again, it goes on.

    Args:
        source: of the boxes.
        jobs: as `jobs_of` returns them.
        workers: images at a time; None for one a core.

    Raises:
        UserError: an image cannot be read, or the boxes not be stored; the others are done all the same.
    """

    def find(job: Job) -> tuple[int, float | None]:
        dataset, index = job
        name, image = dataset.names[index], dataset.read(index)[0]
        stored = source.load(name, image)
        if stored is not None:
            return len(stored), None
        started = time.thread_time()  # of this thread alone, and whatever else the machine does
        return len(source(name, image)), time.thread_time() - started

    results = list(over_images(find, jobs, "Finding proposals", workers))
    seconds = [spent for _, spent in results if spent is not None]
    return Made(len(jobs), len(seconds), sum(count for count, _ in results), sum(seconds))


def over_images(
    work: Callable[[Job], Result], jobs: Sequence[Job], title: str, workers: int | None = None
) -> Iterator[Result]:
    """Yield the result of each image as it comes, showing progress.

    Threads are enough: decoding, filtering and OpenCV's search for boxes run outside the interpreter lock.

    Args:
        work: what to do with an image.
        jobs: as `jobs_of` returns them.
        title: what is being done.
        workers: images at a time; None for one a core.

    Raises:
        UserError: ``work`` raised it for some images; names the first ten, once the others are done.
    """
    require(workers is None or workers >= 1, f"workers={workers}: must be at least 1, or null for one a core")
    faults: list[str] = []
    pool = ThreadPoolExecutor(workers or cores())
    try:
        futures = [pool.submit(work, job) for job in jobs]
        for future in track(as_completed(futures), title, len(jobs), console=Console(stderr=True)):
            try:
                yield future.result()
            except UserError as error:
                faults.append(str(error))
    finally:
        pool.shutdown(cancel_futures=True)
    if faults:
        rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(f"{len(faults)} of {len(jobs)} images failed: {'; '.join(faults[:_SHOWN])}{rest}")
