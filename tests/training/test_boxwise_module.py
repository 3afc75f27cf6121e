import pytest
import torch
from torch import nn

from segmod.ground.errors import UserError
from segmod.inference.dense import DensePredictor
from segmod.inference.multiscale import MultiScalePredictor
from segmod.inference.sliding import SlidingPredictor
from segmod.losses import OneVsRest
from segmod.nets.ops import box_labels, resize
from segmod.training.boxwise import BoxwiseModule


class Boxes(nn.Module):
    """Class 1 where the image is bright, class 0 elsewhere, on a 2 x 2 grid."""

    num_classes = 2
    boxes = 2

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward_boxes(self, image):
        self.calls += 1
        bright = nn.functional.adaptive_avg_pool2d(image.mean(1, keepdim=True), 2)
        return self.gain * torch.cat([-bright, bright], 1)

    def forward(self, image):
        return resize(self.forward_boxes(image), image.shape[-2:])


def module(**options):
    return BoxwiseModule(Boxes(), nn.CrossEntropyLoss(ignore_index=255), torch.optim.SGD, **options)


def test_a_box_has_the_label_of_most_of_its_pixels():
    mask = torch.tensor([[
        [1, 1, 2, 2],
        [1, 2, 255, 255],
        [3, 0, 255, 255],
        [0, 3, 255, 4],
    ]])  # fmt: skip
    # most; half void is not more than half; 0 and 3 tie, the lower wins; three of four void
    assert box_labels(mask, 2).tolist() == [[[1, 2], [0, 255]]]


def test_void_pixels_have_no_vote():
    mask = torch.tensor([[[255, 255, 255, 255, 255, 255], [7, 7, 5, 5, 5, 0], [7, 5, 5, 0, 0, 7]]])
    # columns 0 to 2 hold 3 void, 7 7 5 and 7 5 5: a tie of 7 and 5; columns 3 to 5 3 void, 5 5 0 and 0 0 7
    assert box_labels(mask[:, :, :3], 1).tolist() == [[[5]]]
    assert box_labels(mask[:, :, 3:], 1).tolist() == [[[0]]]
    # 4 void, 3 of 5 and 2 of 7: the most are void, but not more than half
    assert box_labels(torch.tensor([[[255, 255, 5], [255, 255, 5], [7, 7, 5]]]), 1).tolist() == [[[5]]]


def test_boxes_have_the_borders_of_adaptive_pooling():
    # 5 pixels in 2 boxes: 0 to 2 and 2 to 4, the middle one shared; so the row 1 1 2 2 2 has both boxes decided
    mask = torch.tensor([1, 1, 2, 2, 2]).expand(1, 5, 5)
    assert box_labels(mask, 2).tolist() == [[[1, 2], [1, 2]]]


def test_a_grid_finer_than_the_mask_repeats_its_pixels():
    assert box_labels(torch.tensor([[[0, 1], [2, 255]]]), 4)[0].tolist() == [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 255], [2, 2, 255, 255]
    ]  # fmt: skip


def test_a_mask_of_void_alone_has_void_boxes():
    assert box_labels(torch.full((1, 4, 4), 255), 2).tolist() == [[[255, 255], [255, 255]]]


def test_nearest_takes_the_pixel_at_the_centre():
    mask = torch.arange(9).view(1, 3, 3).repeat_interleave(3, 1).repeat_interleave(3, 2)
    mask[:, ::3] = 99  # the centres of the boxes are in rows and columns 1, 4, 7
    assert box_labels(mask, 3, "nearest").tolist() == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]


def test_the_loss_is_that_of_the_boxes():
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:] = 1
    mask = (image[:, 0] > 0).long()
    mask[:, 2:, 2:] = 255
    # log-odds of class 1: 0 at the left, 2 at the right; labels 0 0 left, 1 and void right
    expected = (2 * torch.log(torch.tensor(2.0)) + torch.nn.functional.softplus(torch.tensor(-2.0))) / 3
    torch.testing.assert_close(module().compute_loss({"image": image, "mask": mask}), expected)


def batch():
    image = -torch.ones(1, 3, 8, 12)
    image[..., 6:] = 1
    mask = torch.zeros(1, 8, 12, dtype=torch.int64)
    mask[..., 5:] = 1  # a column more than is bright
    return {"image": image, "mask": mask, "name": ["one"], "index": torch.tensor([0])}


@pytest.mark.parametrize("side", [None, 4])
@pytest.mark.parametrize("predictor", [None, DensePredictor(), SlidingPredictor(), MultiScalePredictor((1.0, 0.5))])
def test_boxes_and_pixels_are_scored_apart(predictor, side, monkeypatch):
    scored = module(predictor=predictor, side=side)
    monkeypatch.setattr(scored, "log_dict", lambda values, **_: logged.update(values))
    logged = {}
    scored.validation_step(batch(), 0)
    # scores of whole images and of boxes come from one pass, unless the predictor makes several
    assert scored.net.calls == (5 if isinstance(predictor, MultiScalePredictor) else 1)
    scored.on_validation_epoch_end()
    # every box is right; of the pixels 8 rows of one column are wrong: 88 / 96
    assert logged["val/box_miou"] == logged["val/box_pixel_acc"] == logged["val/box_background_iou"] == 1
    assert logged["val/pixel_acc"] == pytest.approx(88 / 96)
    assert scored.further == {key: value for key, value in logged.items() if "box_" in key}
    scored.validation_step(batch(), 0)
    assert int(scored.box_metrics.compute().sum()) == 4  # counted anew


def test_boxes_are_of_whole_images_whatever_windows_pixels_are_scored_by():
    scored = module(predictor=SlidingPredictor((8, 6), batch_size=3))
    scored.validation_step(batch(), 0)
    assert scored.net.calls == 2  # three windows at once, and the image
    assert scored.box_metrics.compute().trace() == 4  # every box is right, as above


def test_the_mean_over_present_classes_leaves_absent_ones_out(monkeypatch):
    scored = module()
    monkeypatch.setattr(scored, "log_dict", lambda *_, **__: None)
    only_background = batch() | {"mask": torch.zeros(1, 8, 12, dtype=torch.int64)}
    scored.validation_step(only_background, 0)
    scored.on_validation_epoch_end()
    # half of the boxes are called 1, which is nowhere: IoU 1/2 and 0
    assert scored.further["val/box_present_miou"] == 0.5
    assert scored.further["val/box_miou"] == 0.25


def test_one_against_the_rest_is_the_mean_of_binary_cross_entropies():
    # logits 0: log 2 for each class and pixel; the class that is there has logit 2 in the second pixel
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, 1, 0, 1] = 2
    mask = torch.tensor([[[0, 1, 255]]])
    second = (2 * torch.log(torch.tensor(2.0)) + torch.nn.functional.softplus(torch.tensor(-2.0))) / 3
    torch.testing.assert_close(OneVsRest()(logits, mask), (torch.log(torch.tensor(2.0)) + second) / 2)
    assert OneVsRest()(logits, torch.full((1, 1, 3), 255)) == 0


def test_mistakes_are_told_with_the_key():
    with pytest.raises(UserError, match=r"model\.targets=mean is neither"):
        module(targets="mean")
    pixelwise = nn.Conv2d(3, 2, 1)
    pixelwise.num_classes = 2
    with pytest.raises(UserError, match="labels no boxes: use SingleSkip"):
        BoxwiseModule(pixelwise, nn.CrossEntropyLoss(), torch.optim.SGD)
