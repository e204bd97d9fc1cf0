"""The contrast by WCAG, on colours whose contrast is known."""

import pytest

from tests.browser.contrast import contrast, over


@pytest.mark.parametrize(
    ("ink", "behind", "ratio"),
    [
        ((0, 0, 0), (255, 255, 255), 21.0),
        ((119, 119, 119), (255, 255, 255), 4.478),  # #777, just too faint on white
        ((118, 118, 118), (255, 255, 255), 4.542),  # #767676, just dark enough
        ((255, 255, 255), (255, 255, 255), 1.0),
    ],
)
def test_known_pairs(ink, behind, ratio):
    assert contrast(ink, behind) == contrast(behind, ink) == pytest.approx(ratio, abs=1e-3)


def test_half_of_black_over_white_is_grey():
    assert over((0, 0, 0, 0.5), (255, 255, 255)) == (127.5, 127.5, 127.5)
