"""Work on every image of some splits over all cores, with progress; the check of every file before a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from segmod.data.base import Split
from segmod.data.order import cores
from segmod.ground.errors import UserError, require

_SHOWN = 10
Result = TypeVar("Result")
Job = tuple[Split, int]
"""A split and the index of one of its images."""


def jobs_of(splits: Sequence[Split], limit: int | None = None) -> list[Job]:
    """Return the images of some splits, those of the same name once.

    Args:
        splits: in the order wanted.
        limit: the first so many; None for all.
    """
    require(limit is None or limit >= 1, f"limit={limit}: must be at least 1, or null for all images")
    jobs = {split.names[index]: (split, index) for split in splits for index in range(len(split))}
    return list(islice(jobs.values(), limit))


def over_images(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    title: str,
    workers: int | None = None,
    verdict: str = "failed",
) -> Iterator[Result]:
    """Yield the result of each image as it comes, showing progress.

    Threads are enough: decoding, filtering and OpenCV's search for boxes run outside the interpreter lock.

    Args:
        work: what to do with an image.
        jobs: as `jobs_of` returns them.
        title: what is being done.
        workers: images at a time; None for one a core.
        verdict: what is said of the images for which ``work`` raised a `UserError`.

    Raises:
        UserError: ``work`` raised it for some images; names the first ten, once the others are done.
    """
    require(workers is None or workers >= 1, f"workers={workers}: must be at least 1, or null for one a core")
    faults: dict[int, str] = {}
    pool = ThreadPoolExecutor(workers or cores())
    try:
        place = {pool.submit(work, job): i for i, job in enumerate(jobs)}
        for future in track(as_completed(place), title, len(jobs), console=Console(stderr=True)):
            try:
                yield future.result()
            except UserError as error:
                faults[place[future]] = str(error)
    finally:
        pool.shutdown(cancel_futures=True)
    if faults:
        first = "; ".join(faults[i] for i in sorted(faults)[:_SHOWN])
        rest = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise UserError(f"{len(faults)} of {len(jobs)} images {verdict}: {first}{rest}")


def verify(splits: Sequence[Split]) -> None:
    """Read every image and mask, showing progress.

    Raises:
        UserError: some are bad; names the first ten and says how many there are.
    """

    def look(job: Job) -> None:
        split, index = job
        split.read(index)

    jobs = [(split, index) for split in splits for index in range(len(split))]
    for _ in over_images(look, jobs, "Verifying data", verdict="are bad"):
        pass
