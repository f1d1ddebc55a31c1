import pytest
import torch

from dowser_pl.functional.optimal_brain_surgeon import fused_score, inverse_factor, reverted


def problem(outputs=9, inputs=21, seed=0):
    """Base, tuned, a mask and the mean of h h^T of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    tuned = base + torch.randn(base.shape, generator=generator, dtype=torch.float64)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    tokens = torch.randn(200, inputs, generator=generator, dtype=torch.float64) @ mixing
    mask = torch.rand(base.shape, generator=generator) < 0.4
    return base, tuned, mask, tokens.T @ tokens / len(tokens)


def damped(gram, damping):
    hessian = 2 * gram
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def dense(base, tuned, mask, hessian, sign=1.0):
    """Column by column, every row by itself, the inverse of what is left taken anew each time."""
    weight = tuned.clone()
    for column in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[column:, column:])
        for row in range(len(weight)):
            if not mask[row, column]:
                move = -(weight[row, column] - base[row, column]) / inverse[0, 0] * inverse[0]
                weight[row, column + 1 :] += sign * move[1:]
                weight[row, column] = base[row, column]
    return weight


@pytest.mark.parametrize("block", [1, 4, 21, 128])
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_equals_the_dense_derivation(block, sign):
    base, tuned, mask, gram = problem()
    factor = inverse_factor(gram, 0.01)
    merged, chosen = reverted(base, tuned, factor, lambda part, own: mask[:, part], sign, block)
    torch.testing.assert_close(merged, dense(base, tuned, mask, damped(gram, 0.01), sign), rtol=1e-9, atol=1e-9)
    assert torch.equal(chosen, mask)
    assert torch.equal(merged[~mask], base[~mask])
    if sign == 0:
        assert torch.equal(merged[mask], tuned[mask])


def test_the_last_entry_makes_up_as_well_as_least_squares_can():
    """All but the last column go back: what remains is one regression with a closed form."""
    base, tuned, _, gram = problem(inputs=6)
    mask = torch.zeros(base.shape, dtype=torch.bool)
    mask[:, -1] = True
    merged, _ = reverted(base, tuned, inverse_factor(gram, 1e-9), lambda part, own: mask[:, part])
    # least of (w - tuned) G (w - tuned)^T over the last entry of w
    lost = (base - tuned)[:, :-1]
    expected = tuned[:, -1] - lost @ gram[:-1, -1] / gram[-1, -1]
    torch.testing.assert_close(merged[:, -1], expected, rtol=1e-6, atol=1e-6)


def test_compensation_changes_the_outputs_less():
    """The squared change of the outputs: derivation < nothing < the opposite sign."""
    changes = {1.0: 0.0, 0.0: 0.0, -1.0: 0.0}
    for seed in range(5):
        base, tuned, mask, gram = problem(seed=seed)
        for sign in changes:
            merged, _ = reverted(base, tuned, inverse_factor(gram, 0.01), lambda part, own, m=mask: m[:, part], sign)
            changes[sign] += float(((merged - tuned) @ gram * (merged - tuned)).sum())
    assert changes[1.0] < 0.9 * changes[0.0] < 0.9 * changes[-1.0]


def test_the_factor_is_that_of_the_inverse():
    gram = problem()[3]
    factor = inverse_factor(gram.float(), 0.05)
    assert factor.dtype == torch.float64
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(
        factor.T @ factor, torch.linalg.inv(damped(gram, 0.05)), rtol=1e-4, atol=1e-6
    )  # the gram was rounded


def test_an_input_that_is_always_zero_moves_nothing():
    base, tuned, mask, gram = problem()
    gram[3], gram[:, 3] = 0, 0
    before = gram.clone()
    merged, _ = reverted(base, tuned, inverse_factor(gram, 0.01), lambda part, own: mask[:, part])
    assert bool(merged.isfinite().all())
    assert torch.equal(merged[:, 3], torch.where(mask, tuned, base)[:, 3])
    assert torch.equal(gram, before)


@pytest.mark.parametrize("bad", [float("nan"), -5.0])
def test_what_has_no_inverse_is_refused(bad):
    gram = torch.eye(4)
    gram[2, 2] = bad
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(gram, 0.01)


def test_fused_score_by_hand():
    move = torch.tensor([[3.0, -1.0, 2.0], [1.0, 1.0, 1.0]])
    sensitivity = torch.tensor([[0.0, 0.0, 3.0], [2.0, 4.0, 6.0]])
    # z of |move|: [1, -1, 0] and zeros; z of the sensitivity: [-1, -1, 2] / sqrt(3) and [-1, 0, 1]
    z = 3**-0.5
    expected = torch.tensor([[0.75 - 0.25 * z, -0.75 - 0.25 * z, 0.5 * z], [-0.25, 0.0, 0.25]])
    torch.testing.assert_close(fused_score(move, sensitivity, 0.75), expected - expected.min())
    assert torch.equal(fused_score(torch.ones(2, 1), torch.ones(2, 1), 0.5), torch.zeros(2, 1))


def test_the_choice_sees_what_earlier_blocks_have_compensated():
    base, tuned, mask, gram = problem()
    seen = []

    def choose(part, own):
        seen.append((part.start, part.stop, own.clone()))
        return mask[:, part]

    whole, _ = reverted(base, tuned, inverse_factor(gram, 0.01), choose, block=8)
    assert [each[:2] for each in seen] == [(0, 8), (8, 16), (16, 21)]
    assert torch.equal(seen[0][2], tuned[:, :8])
    partly = mask.clone()
    partly[:, 8:] = True  # nothing of the later columns goes back
    stopped, _ = reverted(base, tuned, inverse_factor(gram, 0.01), lambda part, own: partly[:, part], block=8)
    torch.testing.assert_close(seen[1][2], stopped[:, 8:16])
    assert not torch.equal(whole, stopped)
