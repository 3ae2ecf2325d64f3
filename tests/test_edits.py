"""What readings become under each edit, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from models import WIDTH, batch, causal_lm
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import normalize, relu

from emoreg import edits
from emoreg.edits import ablate, cap, prevent, span
from emoreg.losses import readings
from emoreg.tap import Tap

ROWS, ROOM = 3, 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Edit = Callable[..., Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def frame(cosine: float | None = None) -> Tensor:
    """Orthonormal rows, or two of one cosine and a third across."""
    rows = torch.linalg.qr(draw(ROOM, ROWS)).Q.mT.contiguous()
    if cosine is not None:
        rows[1] = cosine * rows[0] + (1 - cosine**2) ** 0.5 * rows[1]
    return rows


H, MU = 3 * draw(2, 5, ROOM), draw(ROOM)
SIGMA, STRENGTH = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([2.0, -1.0, 0.5])
CEILING, SIGN = torch.tensor([0.5, -0.2, 0.3]), torch.tensor([1.0, -1.0, 1.0])
MASK = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
EDITS: dict[str, Edit] = {
    "prevent": lambda h, mask=None: prevent(h, frame(0.5), SIGMA, STRENGTH, mask),
    "ablate": lambda h, mask=None: ablate(h, MU, span(frame(0.5)), 0.7, mask),
    "cap": lambda h, mask=None: cap(h, MU, frame(0.5), SIGMA, CEILING, SIGN, mask),
}
NOTHING: dict[str, Edit] = {
    "prevent": lambda h: prevent(h, frame(), SIGMA, torch.zeros(ROWS)),
    "ablate": lambda h: ablate(h, MU, span(frame()), 0.0),
    "cap": lambda h: cap(h, MU, frame(), SIGMA, 99 * SIGN, SIGN),
    "no rows": lambda h: ablate(h, MU, span(torch.empty(0, ROOM)), 1.0),
}
each_edit = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)


def read(h: Tensor, directions: Tensor | None = None) -> Tensor:
    return readings(h, frame() if directions is None else directions, MU, SIGMA)


def across(h: Tensor) -> Tensor:
    """What lies outside the span of every frame here."""
    return h - h @ frame().mT @ frame()


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, atol=1e-5, rtol=0)


def test_prevent_raises_each_reading_by_its_strength() -> None:
    assert close(read(prevent(H, frame(), SIGMA, STRENGTH)), read(H) + STRENGTH)


def test_prevent_along_correlated_rows_adds_the_sum_of_its_rows() -> None:
    rows = frame(0.5)
    moved = prevent(H, rows, SIGMA, STRENGTH)
    wanted = sum(c * s * row for c, s, row in zip(STRENGTH, SIGMA, rows, strict=True))
    assert close(moved - H, wanted.expand_as(H))


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("cosine", [None, 0.5, -0.9])
def test_ablate_leaves_the_rest_of_every_reading_in_the_span(
    share: float, cosine: float | None
) -> None:
    rows = frame(cosine)
    left = read(ablate(H, MU, span(rows), share), rows)
    assert close(left, (1 - share) * read(H, rows))


def test_taking_correlated_rows_out_one_by_one_leaves_some_of_them() -> None:
    """Control: a span is needed."""
    h, rows = H, frame(0.5)
    for row in rows:
        h = ablate(h, MU, row.unsqueeze(0), 1.0)
    assert read(h, rows).abs().max() > 0.1


def test_a_span_is_orthonormal_and_no_larger_than_its_rows() -> None:
    rows = frame(0.5)
    twice = torch.cat([rows, rows[:1] + 1e-7, normalize(rows[:1] + rows[1:2], dim=-1)])
    basis = span(twice)
    assert basis.shape == (ROWS, ROOM)
    assert close(basis @ basis.mT, torch.eye(ROWS))
    assert close(twice @ basis.mT @ basis, twice)
    made_up = torch.linalg.qr(twice.mT).Q.mT  # control: what QR makes of dependent rows
    assert across(made_up).norm(dim=-1).max() > 0.5


def test_cap_clips_at_ceilings_and_floors() -> None:
    before, after = read(H), read(cap(H, MU, frame(), SIGMA, CEILING, SIGN))
    assert close(after, torch.where(SIGN > 0, before.minimum(CEILING), before.maximum(CEILING)))
    beyond = (before - CEILING) * SIGN > 0
    assert beyond.any()  # control: some readings are clipped,
    assert not beyond.all()  # and some are not


def test_cap_of_one_row_is_its_formula() -> None:
    row, c, s = frame()[:1], 0.1, -1.0
    found = cap(H, MU, row, SIGMA[:1], torch.tensor([c]), torch.tensor([s]))
    reading = readings(H, row, MU, SIGMA[:1])
    assert close(found, H - relu(s * (reading - c)) * s * SIGMA[0] * row)


def test_a_ceiling_may_differ_from_token_to_token() -> None:
    ceiling, up = read(H) + draw(2, 5, ROWS), torch.ones(ROWS)
    after = read(cap(H, MU, frame(), SIGMA, ceiling, up))
    assert close(after, read(H).minimum(ceiling))
    assert (after < read(H) - 0.1).any()  # control


def nearest(h: Tensor, rows: Tensor, ceiling: Tensor) -> Tensor:
    """The point within every ceiling that is nearest to one token: all sets of rows are tried."""
    above = ((read(h, rows) - ceiling) * SIGMA).double()
    overlap = (rows @ rows.mT).double()
    for size in range(ROWS + 1):
        for active in map(list, combinations(range(ROWS), size)):
            pull = torch.zeros(ROWS, dtype=torch.float64)
            pull[active] = torch.linalg.solve(overlap[active][:, active], above[active])
            if pull.min() >= 0 and (above - overlap @ pull).max() < 1e-9:
                return h - pull.float() @ rows
    raise AssertionError("No set of rows fits.")


@pytest.mark.parametrize("cosine", [0.5, -0.5, 0.8])
def test_cap_along_correlated_rows_goes_to_the_nearest_point(
    cosine: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, ceiling, up = frame(cosine), torch.full((ROWS,), 0.2), torch.ones(ROWS)
    wanted = torch.stack([nearest(h, rows, ceiling) for h in H.flatten(0, 1)]).view_as(H)
    excess = ((read(H, rows) - ceiling) * SIGMA).clamp(min=0).amax(-1)

    def error(passes: int) -> Tensor:
        monkeypatch.setattr(edits, "PASSES", passes)
        gap = (cap(H, MU, rows, SIGMA, ceiling, up) - wanted) @ rows.mT
        return gap.abs().amax(-1)

    assert (excess > 1).any()
    assert abs(cosine) != 0.5 or (error(edits.PASSES) <= 0.05 * excess + 1e-5).all()
    assert error(80).max() < 1e-5
    assert error(1).max() > 0.05  # control: one pass is not exact here


@each_edit
def test_an_edit_leaves_everything_across_its_rows(edit: Edit) -> None:
    after = edit(H)
    assert close(across(after), across(H))
    assert not close(after, H)  # control


@each_edit
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_outside_the_mask_keep_every_bit(edit: Edit, dtype: torch.dtype) -> None:
    h = H.to(dtype, copy=True)
    h[0, 1, 0] = float("nan")  # as padding may be
    after = edit(h, MASK)
    assert after.dtype == dtype
    bits = [x[~MASK].contiguous().view(torch.uint8) for x in (h, after)]
    assert torch.equal(*bits)
    assert torch.equal(after[MASK], edit(h)[MASK])
    assert (after[MASK] != h[MASK]).any(-1).all() or edit is EDITS["cap"]  # control


@each_edit
def test_the_models_own_output_is_not_changed(edit: Edit) -> None:
    h = H.clone()
    edit(h, MASK)
    assert torch.equal(h, H)


@pytest.mark.parametrize("edit", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_edit_of_no_strength_changes_no_bit(edit: Edit, dtype: torch.dtype) -> None:
    assert torch.equal(edit(H.to(dtype)), H.to(dtype))


@each_edit
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_dtype_is_edited_in_float32_and_rounded_once(
    edit: Edit, dtype: torch.dtype
) -> None:
    h = H.to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = edit(h)
    assert torch.equal(found, edit(h.float()).to(dtype))


@each_edit
def test_the_gradient_is_the_finite_difference(edit: Edit) -> None:
    assert gradcheck(edit, (H.double().requires_grad_(),))
    h = H.double().requires_grad_()
    (whole,) = torch.autograd.grad(edit(h, MASK).sum(), h)
    assert (whole[~MASK] == 1).all()


def test_training_sees_nothing_of_a_span_that_is_ablated_or_of_a_reading_that_is_clipped() -> None:
    h = H.clone().requires_grad_()
    seen = ablate(h, MU, span(frame(0.5)), 1.0) @ draw(ROOM)
    (gradient,) = torch.autograd.grad(seen.sum(), h)
    assert (gradient @ frame().mT).abs().max() < 1e-5
    (clipped,) = torch.autograd.grad(
        (cap(h, MU, frame(), SIGMA, CEILING, SIGN) @ draw(ROOM)).sum(), h
    )
    beyond = (read(H) - CEILING) * SIGN > 0
    along = clipped @ frame().mT
    assert along[beyond].abs().max() < 1e-5
    assert close(along[~beyond], (draw(ROOM) @ frame().mT).expand_as(along)[~beyond])


def test_padding_that_is_not_a_number_reaches_no_gradient() -> None:
    h = H.clone()
    h[0, 1] = float("nan")
    for edit in EDITS.values():
        leaf = h.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(edit(leaf, MASK)[MASK].sum(), leaf)
        assert gradient.isfinite().all()


def test_the_block_after_an_edit_is_given_what_was_edited() -> None:
    model, inputs = causal_lm(), batch()
    rows = torch.linalg.qr(draw(WIDTH, ROWS)).Q.mT
    basis, mu, given = span(rows), torch.zeros(WIDTH), []
    model.model.layers[2].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    with torch.no_grad():
        with Tap(model, [1], edit=lambda _, h: ablate(h, mu, basis, 1.0)):
            edited = model(**inputs).logits
        plain = model(**inputs).logits
    left, before = (readings(h, rows, mu, torch.ones(ROWS)).abs().max() for h in given)
    assert left < 1e-5
    assert before > 0.01  # control
    assert not torch.allclose(edited, plain, atol=1e-3)
