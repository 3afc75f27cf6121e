"""The confusion matrix and what is derived from it, against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchmetrics.classification import MulticlassConfusionMatrix

from segmod.ground.types import labels_of
from segmod.metrics import SegmentationMetrics, mean_iou, present_classes, summarise

# Rows of the result table of Noh et al. 2015 (table 1, VOC2012 test): IoU in percent of the 21 classes, background
# first, then the printed mean.
PUBLISHED = {
    "Hypercolumn": (
        "88.9 68.4 27.2 68.2 47.6 61.7 76.9 72.1 71.1 24.3 59.3 44.8 62.7 59.4 73.5 70.6 52.0 63.0 38.1 60.0 54.1 59.2"
    ),
    "FCN8s": (
        "91.2 76.8 34.2 68.9 49.4 60.3 75.3 74.7 77.6 21.4 62.5 46.8 71.8 63.9 76.5 73.9 45.2 72.4 37.4 70.9 55.1 62.2"
    ),
    "DeconvNet": (
        "92.7 85.9 42.6 78.9 62.5 66.6 87.4 77.8 79.5 26.3 73.4 60.2 70.8 76.5 79.6 77.7 58.2 77.4 52.9 75.2 59.8 69.6"
    ),
    "EDeconvNet+CRF": (
        "93.1 89.9 39.3 79.7 63.9 68.2 87.4 81.2 86.1 28.5 77.0 62.0 79.0 80.3 83.6 80.2 58.8 83.4 54.3 80.7 65.0 72.5"
    ),
}


def test_counts_rows_of_truth_and_leaves_void_out() -> None:
    metric = SegmentationMetrics(3)
    labels = torch.tensor([[[0, 1, 1], [2, 2, 0]]])
    mask = torch.tensor([[[0, 1, 0], [2, 1, 255]]])
    metric.update(labels, mask)
    metric.update(labels, mask)  # accumulates over the set
    # truth/prediction pairs of one image: 0/0, 1/1, 0/1, 2/2, 1/2; the sixth pixel is void
    expected = 2 * torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1]])
    confusion = metric.compute()
    assert confusion.dtype == torch.int64
    assert torch.equal(confusion, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_counts_as_torchmetrics_does(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    labels, mask = (torch.randint(5, (3, 9, 7), generator=generator) for _ in range(2))
    mask[torch.rand(mask.shape, generator=generator) < 0.2] = 255
    metric, other = SegmentationMetrics(5), MulticlassConfusionMatrix(5, ignore_index=255)
    metric.update(labels.to(dtype), mask.to(dtype))
    other.update(labels, mask)
    assert torch.equal(metric.compute(), other.compute())


def test_counts_where_the_masks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # a mode in which tensors have a device and no values, so that counting them needs a stand-in
    monkeypatch.setattr(torch, "bincount", lambda pairs, minlength: pairs.new_zeros(minlength))
    with FakeTensorMode():
        with torch.device("cuda"):
            metric = SegmentationMetrics(3)
        scores, mask = torch.randn(2, 3, 4, 4, device="cuda"), torch.zeros(2, 4, 4, dtype=torch.uint8)
        metric.update(labels_of(scores), mask.to("cuda"))
        assert metric.confmat.device.type == "cuda"
        with pytest.raises(RuntimeError, match="different devices"):
            metric.update(labels_of(scores), mask)


def test_the_label_is_the_first_of_the_best_and_of_nan() -> None:
    nan, inf = float("nan"), float("inf")
    columns = [[1, 3, 3, 2], [0, 0, 0, 0], [-inf, -inf, -1, -inf], [4, 3, 5, 5], [-inf] * 4, [inf, 2, inf, 3]]
    scores = torch.tensor(columns).T.reshape(1, 4, 2, 3)
    assert labels_of(scores).flatten().tolist() == [1, 0, 2, 2, 0, 0]
    scores = torch.tensor([*columns[:3], [1, nan, 9, nan], [2, 1, nan, inf], [nan] * 4]).T.reshape(1, 4, 2, 3)
    assert labels_of(scores).flatten().tolist() == [1, 0, 2, 1, 2, 0]
    many = torch.randn(2, 300, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for classes in (1, 21, 256, 300):  # 256: the most that a byte can tell
        found = labels_of(many[:, :classes])
        assert found.dtype == torch.int64
        assert torch.equal(found, many[:, :classes].argmax(1))


def test_an_image_without_truth_counts_nothing() -> None:
    metric = SegmentationMetrics(2)
    metric.update(torch.zeros(1, 4, 4, dtype=torch.int64), torch.full((1, 4, 4), 255))
    assert int(metric.compute().sum()) == 0


def test_accumulates_over_the_set_not_per_image() -> None:
    metric = SegmentationMetrics(2)
    metric.update(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[0, 0, 0, 0]]]))
    metric.update(torch.tensor([[[0, 0, 0, 0]]]), torch.tensor([[[1, 1, 0, 0]]]))
    # over the set IoU_0 = 6 / 8 and IoU_1 = 0 / 2; a mean of per-image means would be (1 + .25) / 2
    assert summarise(metric.compute()).miou == pytest.approx(0.375)


def test_four_metrics_by_hand() -> None:
    # t = (5, 3, 2), predicted = (4, 4, 2), correct = (4, 2, 1)
    summary = summarise(torch.tensor([[4, 1, 0], [0, 2, 1], [0, 1, 1]]))
    iou = [4 / 5, 2 / 5, 1 / 3]  # n_ii / (t_i + predicted_i - n_ii)
    assert summary.iou == pytest.approx(iou)
    assert summary.pixel_acc == pytest.approx(7 / 10)
    assert summary.mean_acc == pytest.approx((4 / 5 + 2 / 3 + 1 / 2) / 3)
    assert summary.miou == pytest.approx(sum(iou) / 3)
    assert summary.fwiou == pytest.approx((5 * iou[0] + 3 * iou[1] + 2 * iou[2]) / 10)


def test_absent_and_only_predicted_classes() -> None:
    # class 1 appears nowhere; class 2 is predicted on 2 pixels but never true; class 0 has 6 of 8 pixels right
    confusion = torch.tensor([[6, 0, 2], [0, 0, 0], [0, 0, 0]])
    summary = summarise(confusion)
    assert summary.iou == [0.75, None, 0.0]
    assert summary.miou == pytest.approx((0.75 + 0.0) / 2)
    assert summary.mean_acc == pytest.approx(0.75)  # classes of the truth alone
    assert summary.fwiou == pytest.approx(0.75)
    assert present_classes(confusion) == [0]
    assert mean_iou(summary.iou, present_classes(confusion)) == pytest.approx(0.75)


def test_nothing_counted_is_none_not_a_crash() -> None:
    summary = summarise(torch.zeros(4, 4, dtype=torch.int64))
    assert (summary.pixel_acc, summary.mean_acc, summary.miou, summary.fwiou) == (None, None, None, None)
    assert summary.iou == [None] * 4
    assert mean_iou(summary.iou) is None


def test_counts_beyond_float32_stay_exact() -> None:
    # 2**24 + 1 is the first integer float32 cannot hold: with it the accuracy would be 1 exactly
    summary = summarise(torch.tensor([[2**24 + 1, 0], [1, 0]]))
    assert summary.pixel_acc == pytest.approx((2**24 + 1) / (2**24 + 2), abs=1e-12)
    assert summary.pixel_acc != 1


@pytest.mark.parametrize("method", PUBLISHED)
def test_mean_of_published_rows_includes_background(method: str) -> None:
    *values, printed = (float(v) for v in PUBLISHED[method].split())
    assert len(values) == 21
    assert mean_iou(values) == pytest.approx(printed, abs=0.05 + 1e-9)  # the values are rounded to one decimal
    assert mean_iou(values, range(1, 21)) != pytest.approx(
        printed, abs=1
    )  # without background another number comes out
