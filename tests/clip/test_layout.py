"""Texts in one row: each token attends to its own text, as if there were no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clip.blocks import Attention
from clip.layout import Layout

WIDTH, HEADS = 12, 3
ENDS = (6, 4, 9, 4)  # of four texts


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(WIDTH, HEADS)


def attended(attention: Attention, projected: Tensor) -> Tensor:
    """Attend causally in one text (T, 3 * width), by the definition."""
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in projected.chunk(3, dim=-1))
    scores = torch.einsum("qhd,khd->hqk", q, k) / (WIDTH // HEADS) ** 0.5
    later = torch.ones(len(q), len(q)).triu(1).bool()
    weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("n_variants", [1, 2])
def test_each_token_attends_to_its_own_text(attention: Attention, n: int, n_variants: int) -> None:
    layout = Layout(ENDS, n, torch.device("cpu"))
    row = torch.randn(n_variants, n + sum(end + 1 - n for end in ENDS), 3 * WIDTH)
    found = layout.attend(attention.split, [row])
    of_ends = [row[:, layout.end_rows, :WIDTH], row[..., WIDTH:]]
    found_of_ends = layout.attend(attention.split, of_ends)
    for variant in range(n_variants):
        start = n
        for i, end in enumerate(ENDS):
            own = slice(start, start + end + 1 - n)
            start = own.stop
            text = torch.cat([row[variant, :n], row[variant, own]])
            expected = attended(attention, text)
            torch.testing.assert_close(found[variant, own], expected[n:])
            torch.testing.assert_close(found[variant, :n], expected[:n])
            torch.testing.assert_close(found_of_ends[variant, i], expected[-1])


@pytest.mark.parametrize("ends", [ENDS, (5, 5)], ids=["padded", "of one length"])
def test_what_was_filled_up_is_in_a_row_again(ends: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layout = Layout(ends, 2, torch.device("cpu"))
    own = torch.randn(2, sum(end - 1 for end in ends), WIDTH)
    filled = layout.filled(own)
    assert filled.shape == (2 * len(ends), max(ends) - 1, WIDTH)
    assert torch.equal(filled[filled != 0].sort()[0], own.flatten().sort()[0])
    assert torch.equal(layout.in_a_row(filled), own)


def test_places_and_positions() -> None:
    layout = Layout((3, 2), 1, torch.device("cpu"))
    assert layout.positions.tolist() == [0, 1, 2, 3, 1, 2]
    assert layout.starts.tolist() == [1, 4]
    assert layout.end_rows.tolist() == [3, 5]
    assert layout.padding == 7 / 6
