import pytest
import torch
from torch.nn import functional as F

from dehvf_kit.ops.linear import linear_of_slice


@pytest.fixture
def table():
    torch.manual_seed(0)
    return torch.randn(5, 8, dtype=torch.float64, requires_grad=True), torch.randn(5, dtype=torch.float64)


def whole(*shape):
    torch.manual_seed(1)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    "x",
    [
        whole(2, 3, 21, 8)[:, :, 1:],
        whole(2, 3, 21, 8)[:, :, 4:],
        whole(2, 3, 21, 8)[:, 1:, 1:],
        whole(2, 3, 21, 8)[1:, :, 1:],
        whole(2, 3, 21, 8)[:, :, :-1],
        whole(2, 3, 21, 9)[:, :, 1:, 1:],
        whole(3, 2, 21, 8).transpose(0, 1)[:, :, 1:],
        whole(2, 3, 20, 8),
        whole(21, 8)[1:],
    ],
    ids=["class token", "many before", "later layers", "later rows", "cut end", "cut width", "transposed", "all", "matrix"],
)
def test_a_slice_maps_as_its_copy_does(table, x):
    weight, bias = table
    mapped = linear_of_slice(x, weight, bias)
    expected = F.linear(x.contiguous(), weight, bias)
    torch.testing.assert_close(mapped, expected, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(mapped)
    (got,) = torch.autograd.grad(mapped, weight, seed)
    (want,) = torch.autograd.grad(expected, weight, seed)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_the_slice_of_frozen_features_is_not_copied(table):
    features = whole(2, 3, 33, 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear_of_slice(features[:, :, 1:], *table)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in kept}
    assert features.untyped_storage().data_ptr() in pointers


def test_a_slice_that_wants_a_gradient_gets_it(table):
    features = whole(2, 3, 33, 8).requires_grad_()
    linear_of_slice(features[:, :, 1:], *table).sum().backward()
    assert features.grad[:, :, 1:].abs().sum() > 0
    assert features.grad[:, :, 0].abs().sum() == 0
