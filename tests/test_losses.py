import math
from contextlib import suppress

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv

from segmod.ground.errors import UserError
from segmod.losses import OHEM, BalancedCrossEntropy, Dice, Focal, Lovasz, OneVsRest, Sum, weigh_classes


def test_every_class_present_counts_the_same():
    # two classes, log-odds chosen so that each pixel's negative log-likelihood is known: class 0 has three pixels of
    # -log(1/2), class 1 one pixel of -log(1/4): the mean of the classes is (log 2 + log 4) / 2
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.75, 0.25]])
    logits = p.log().T.reshape(1, 2, 2, 2)
    mask = torch.tensor([[[0, 0], [0, 1]]])
    expected = (torch.log(torch.tensor(2.0)) + torch.log(torch.tensor(4.0))) / 2
    torch.testing.assert_close(BalancedCrossEntropy()(logits, mask), expected)


def test_void_pixels_and_absent_classes_do_not_count():
    logits = torch.randn(1, 3, 2, 3)
    mask = torch.tensor([[[0, 255, 2], [2, 0, 255]]])
    nll = -logits.log_softmax(1)
    expected = ((nll[0, 0, 0, 0] + nll[0, 0, 1, 1]) / 2 + (nll[0, 2, 0, 2] + nll[0, 2, 1, 0]) / 2) / 2
    torch.testing.assert_close(BalancedCrossEntropy()(logits, mask), expected)


def test_a_batch_without_labels_costs_nothing_and_has_a_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = BalancedCrossEntropy()(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_a_balanced_batch_has_the_plain_mean(shape):
    logits = torch.randn(1, 3, *shape)
    mask = torch.tensor([0, 1, 2, 2, 1, 0]).view(1, *shape)
    torch.testing.assert_close(BalancedCrossEntropy()(logits, mask), torch.nn.functional.cross_entropy(logits, mask))


def test_bfloat16_logits_are_summed_in_float32():
    # all logits 0: every pixel costs log 2; 0.6914, the bfloat16 next to 0.6931, would be 0.25 % off
    logits = torch.zeros(1, 2, 1000, dtype=torch.bfloat16)
    loss = BalancedCrossEntropy()(logits, torch.zeros(1, 1000, dtype=torch.int64))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


# -- losses of overlap, of focus, of hard pixels; sums ----------------------------------------------------------------


def scores(*p: float) -> torch.Tensor:
    """Logits (1, 2, n) of pixels whose class 1 has these probabilities."""
    ones = torch.tensor(p)
    return torch.stack([1 - ones, ones]).log()[None]


def test_dice_is_of_each_class_over_the_batch() -> None:
    # class 1: pixels 0 and 1 are it, found with 0.8 and 0.6, pixel 2 claimed with 0.4:
    # 2 (0.8 + 0.6) / (0.64 + 0.36 + 0.16 + 2) = 2.8 / 3.16; class 0: 2 * 0.6 / (0.04 + 0.16 + 0.36 + 1) = 1.2 / 1.56
    found = Dice()(scores(0.8, 0.6, 0.4), torch.tensor([[1, 1, 0]]))
    assert float(found) == pytest.approx(1 - (2.8 / 3.16 + 1.2 / 1.56) / 2)
    # weights 1 and 3: three quarters of the mean are class 1's
    found = Dice(torch.tensor([1.0, 3.0]))(scores(0.8, 0.6, 0.4), torch.tensor([[1, 1, 0]]))
    assert float(found) == pytest.approx(1 - (3 * 2.8 / 3.16 + 1.2 / 1.56) / 4)


def test_lovasz_weighs_errors_by_what_they_add_to_the_jaccard_loss() -> None:
    # class 1, errors 0.4 (pixel 1), 0.4 (pixel 2: not it), 0.2 (pixel 0). Whichever of the two 0.4 comes first, both
    # wrong cost 1 - 1/3 = 2/3 and all three 1: 0.4 * 2/3 + 0.2 * 1/3. Class 0: pixel 2 is all of it, so the first two
    # errors of 0.4 end at 1 - 0/2 = 1, and the third adds nothing: 0.4.
    found = Lovasz()(scores(0.8, 0.6, 0.4), torch.tensor([[1, 1, 0]]))
    assert float(found) == pytest.approx((0.4 * 2 / 3 + 0.2 / 3 + 0.4) / 2)


def test_lovasz_of_certain_answers_is_one_minus_iou() -> None:
    # class 1: true in 0, 1, 2, said in 1, 2, 3: IoU 2/4; class 0: true in 3, 4, said in 0, 4: 1/3
    logits = 100 * (scores(0.2, 0.9, 0.9, 0.9, 0.2))
    found = Lovasz()(logits, torch.tensor([[1, 1, 1, 0, 0]]))
    assert float(found) == pytest.approx(1 - (2 / 4 + 1 / 3) / 2, abs=1e-5)


def test_focal_loss_counts_easy_pixels_less() -> None:
    # p of the true classes 0.8, 0.5: ((0.2)^2 * -log 0.8 + (0.5)^2 * -log 0.5) / 2
    logits, mask = scores(0.8, 0.5), torch.tensor([[1, 0]])
    expected = (0.04 * -math.log(0.8) + 0.25 * -math.log(0.5)) / 2
    assert float(Focal()(logits, mask)) == pytest.approx(expected)
    # alpha 1 and 3, the mean by alpha: (3 * 0.04 * -log 0.8 + 0.25 * -log 0.5) / 4
    expected = (3 * 0.04 * -math.log(0.8) + 0.25 * -math.log(0.5)) / 4
    assert float(Focal(weight=torch.tensor([1.0, 3.0]))(logits, mask)) == pytest.approx(expected)
    weight = torch.tensor([0.5, 2.0])
    plain = torch.nn.functional.cross_entropy(logits, mask, weight)
    torch.testing.assert_close(Focal(gamma=0.0, weight=weight)(logits, mask), plain)


def test_ohem_is_the_mean_over_hard_pixels() -> None:
    logits, mask = scores(0.9, 0.8, 0.6, 0.5), torch.tensor([[1, 1, 1, 1]])
    # below 0.7 are 0.6 and 0.5; none is below 0.4, but the hardest half of four are two, the hardest quarter one
    for threshold, least, kept in ((0.7, 0.0, (0.6, 0.5)), (0.4, 0.5, (0.6, 0.5)), (0.4, 0.25, (0.5,))):
        expected = sum(-math.log(p) for p in kept) / len(kept)
        assert float(OHEM(threshold, least)(logits, mask)) == pytest.approx(expected)
    assert float(OHEM(0.4, 0.0)(logits, mask)) == 0


def test_a_sum_weighs_its_parts() -> None:
    logits, mask = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    parts = {"ce": torch.nn.CrossEntropyLoss(), "dice": Dice(), "lovasz": Lovasz()}
    expected = 0.5 * parts["ce"](logits, mask) + 2 * parts["dice"](logits, mask) + parts["lovasz"](logits, mask)
    torch.testing.assert_close(Sum(parts, {"ce": 0.5, "dice": 2.0})(logits, mask), expected)
    with pytest.raises(UserError, match=r"model\.loss\.factors: no part is called dcie; they are ce, dice, lovasz"):
        Sum(parts, {"dcie": 0.5})
    with pytest.raises(UserError, match=r"model\.loss\.parts: give at least one"):
        Sum({})


LOSSES = {
    "dice": Dice(),
    "lovasz": Lovasz(),
    "focal": Focal(),
    "focal below one": Focal(0.5),
    "ohem": OHEM(),
    "weighted dice": Dice(torch.tensor([1.0, 2.0, 0.5])),
    "weighted lovasz": Lovasz(torch.tensor([1.0, 2.0, 0.5])),
    "weighted ohem": OHEM(weight=torch.tensor([1.0, 2.0, 0.5])),
    "sum": Sum({"focal": Focal(), "dice": Dice()}, {"dice": 0.5}),
}


@pytest.mark.parametrize("name", LOSSES)
class TestEveryLoss:
    def test_void_pixels_count_as_if_they_were_not_there(self, name: str) -> None:
        torch.manual_seed(0)
        logits, mask = torch.randn(2, 3, 4, 5), torch.randint(0, 2, (2, 4, 5))  # class 2 is absent
        mask[:, 0] = 255
        whole = LOSSES[name](logits, mask)
        torch.testing.assert_close(whole, LOSSES[name](logits[:, :, 1:], mask[:, 1:]))
        logits[:, :, 0] = 1e4
        torch.testing.assert_close(whole, LOSSES[name](logits, mask))

    def test_every_tensor_is_on_the_device_of_the_logits(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # a mode in which tensors have a device and no values; so these two, which depend on values, need stand-ins
        monkeypatch.setattr(torch, "bincount", lambda labels, minlength: labels.new_zeros(minlength))
        monkeypatch.setattr(torch.Tensor, "unique", lambda labels: [0, 1, 2])
        with FakeTensorMode(shape_env=ShapeEnv()) as mode:
            state = {key: mode.from_tensor(part).to("cuda") for key, part in LOSSES[name].named_buffers()}
            logits, mask = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
            with suppress(GuardOnDataDependentSymNode):  # of OHEM, which looks how many pixels are hard
                loss = functional_call(LOSSES[name], state, (logits.to("cuda"), mask.to("cuda")))
                assert loss.device.type == "cuda"
            with pytest.raises(RuntimeError, match="device"):
                functional_call(LOSSES[name], state, (logits.to("cuda"), mask))

    def test_nothing_labelled_costs_nothing_and_has_a_gradient(self, name: str) -> None:
        logits = torch.randn(1, 3, 2, 2, requires_grad=True)
        loss = LOSSES[name](logits, torch.full((1, 2, 2), 255))
        loss.backward()
        assert loss.item() == 0
        assert logits.grad is not None
        assert not logits.grad.any()

    def test_a_step_against_the_gradient_lowers_it(self, name: str) -> None:
        torch.manual_seed(0)
        logits, mask = torch.randn(2, 3, 4, 5, requires_grad=True), torch.randint(0, 3, (2, 4, 5))
        loss = LOSSES[name](logits, mask)
        loss.backward()
        assert logits.grad is not None
        step = 1e-2 * logits.grad / logits.grad.norm()
        # to first order by the norm of the gradient times the length of the step
        gain = float((loss - LOSSES[name](logits - step, mask)).detach())
        assert gain == pytest.approx(1e-2 * float(logits.grad.norm()), rel=0.05)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_summed_in_float32(self, name: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        # sums over 20 000 pixels leave the digits of bfloat16, and the range of float16
        logits = torch.randn(1, 3, 100, 200).to(dtype).requires_grad_()
        mask = torch.randint(0, 3, (1, 100, 200))
        loss = LOSSES[name](logits, mask)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, LOSSES[name](logits.float(), mask))
        loss.backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()

    def test_certainty_has_no_infinite_gradient(self, name: str) -> None:
        right = torch.tensor([[[200.0, 0.0, 0.0]], [[0.0, 200.0, 0.0]]]).movedim(-1, 1).requires_grad_()
        mask = torch.tensor([[0], [1]])
        loss = LOSSES[name](right, mask)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert right.grad is not None
        assert right.grad.isfinite().all()
        wrong = LOSSES[name](right.detach().requires_grad_(), 1 - mask)
        wrong.backward()
        assert wrong.isfinite()

    def test_a_class_that_is_not_there_changes_nothing(self, name: str) -> None:
        """Its score is as low as can be: it takes nothing from the others, and has no loss of its own."""
        torch.manual_seed(0)
        logits, mask = torch.randn(1, 3, 6, 6), torch.randint(0, 2, (1, 6, 6))
        logits[:, 2] = -1e4
        full = LOSSES[name](logits, mask)
        if "weight" not in name:
            torch.testing.assert_close(full, LOSSES[name](logits[:, :2], mask))
        assert full.isfinite()


def test_no_pixel_cannot_be_hard() -> None:
    with pytest.raises(UserError, match="no pixel counts"):
        OHEM(0.0, 0.0)


# -- weights of classes ------------------------------------------------------------------------------------------------


def test_classes_are_weighed_in_every_part_that_can() -> None:
    loss = Sum({"ce": torch.nn.CrossEntropyLoss(), "dice": Dice(), "rest": OneVsRest()})
    weigh_classes(loss, [1, 3], 2)
    logits, mask = scores(0.8, 0.6, 0.4), torch.tensor([[1, 1, 0]])
    weight = torch.tensor([1.0, 3.0])
    expected = torch.nn.CrossEntropyLoss(weight)(logits, mask) + Dice(weight)(logits, mask) + OneVsRest()(logits, mask)
    torch.testing.assert_close(loss(logits, mask), expected)
    assert {name for name in loss.state_dict() if name.endswith("weight")} == {"parts.ce.weight", "parts.dice.weight"}


@pytest.mark.parametrize(
    ("loss", "weights", "message"),
    [
        (OneVsRest(), [1.0, 2.0], r"data\.class_weights: OneVsRest takes none; .*loss=cross_entropy"),
        (Dice(torch.ones(2)), [1.0, 2.0], r"model\.loss has a weight of its own"),
        (Dice(), [1.0, 2.0, 3.0], r"data\.class_weights has 3 numbers; the data have 2 classes"),
        (torch.nn.CrossEntropyLoss(torch.ones(3)), None, r"model\.loss: weight has 3 numbers; the data have 2"),
    ],
)
def test_weights_that_do_not_fit_are_told(loss: torch.nn.Module, weights: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        weigh_classes(loss, weights, 2)
