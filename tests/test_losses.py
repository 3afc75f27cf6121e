import pytest
import torch

from segmod.losses import BalancedCrossEntropy


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
