"""How figures are written for people."""

import pytest

from tauten.core.figures import (
    format_bytes,
    format_change,
    format_limit,
    format_number,
    format_percent,
    format_seconds,
)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (format_bytes(0), "0 B"),
        (format_bytes(999_999), "1.00 MB"),
        (format_bytes(61_300_000), "61.3 MB"),
        (format_bytes(1_234_567_890), "1.23 GB"),
        (format_bytes(None), "-"),
        (format_percent(0.0149), "1.49%"),
        (format_percent(-0.000001), "0.00%"),
        (format_percent(-0.0003), "-0.03%"),
        (format_percent(123.456), "12,346%"),
        (format_percent(float("inf")), "infinite"),
        (format_percent(float("nan")), "-"),
        (format_limit(0.02), "2%"),
        (format_limit(0.015), "1.5%"),
        (format_seconds(0.0431), "43.1 ms"),
        (format_seconds(0.9999), "1.00 s"),
        (format_seconds(192), "3 min 12 s"),
        (format_seconds(7320), "2 h 2 min"),
        (format_number(17.612), "17.61"),
        (format_number(0), "0"),
        (format_change(200, 100, "smaller", "larger"), "2.0x smaller"),
        (format_change(100, 110, "faster", "slower"), "10% slower"),
        (format_change(100, 100.1, "less", "more"), "unchanged"),
    ],
)
def test_figures_read_well(shown: str, text: str) -> None:
    assert shown == text
