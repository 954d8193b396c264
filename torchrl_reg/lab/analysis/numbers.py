"""Formats numbers for display: amounts, durations, scores, percentages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float, digits: int = 3) -> str:
    """Three digits, with a letter for thousands and above.

    >>> amount(0), amount(950), amount(1500), amount(999_999), amount(200_000_000), amount(0.25)
    ('0', '950', '1.5k', '1M', '200M', '0.25')
    """
    for unit, name in _UNITS:
        if abs(value) >= 0.9995 * unit:
            return f"{value / unit:.{digits}g}{name}"
    return f"{value:.{digits}g}"


def distinct(values: Sequence[float], text: Callable[[float, int], str]) -> list[str]:
    """``text`` of each value, with three digits, or more if needed to distinguish them.

    >>> distinct([2000, 2002.5, 2005], amount), distinct([0, 10], amount)
    (['2k', '2.002k', '2.005k'], ['0', '10'])
    """
    found = [text(value, 3) for value in values]
    for digits in range(4, 16):
        if len(set(found)) == len(found):
            break
        found = [text(value, digits) for value in values]
    return found


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "run"), counted(2_000, "run")
    ('1 run', '2000 runs')
    """
    return f"{count} {noun}{'s' * (count != 1)}"


def number(value: float, digits: int = 3) -> str:
    """A value in few characters, with a minus sign.

    >>> number(-1234.5), number(0.25), number(0.000012), number(2_500_000)
    ('−1.23k', '0.25', '1.2e-5', '2.5M')
    """
    size = abs(value)
    text = f"{size:.{digits - 1}g}".replace("e-0", "e-") if 0 < size < 0.001 else amount(size, digits)
    return f"−{text}" if value < 0 else text


def score_text(value: float) -> str:
    """A score with three or four digits.

    >>> score_text(0.98765), score_text(-147.8412), score_text(12345.6), score_text(3)
    ('0.988', '−147.8', '12346', '3.00')
    """
    size = abs(value)
    text = f"{size:.0f}" if size >= 1000 else f"{size:.1f}" if size >= 100 else f"{size:#.3g}"
    return f"−{text}" if value < 0 and float(text) else text


def percent(value: float) -> str:
    """A signed percentage of two or three digits.

    >>> percent(12.3), percent(-4.56), percent(-0.01), percent(0.04)
    ('+12%', '-4.6%', '0.0%', '0.0%')
    """
    if abs(value) < 0.05:
        return "0.0%"
    return f"{value:+.0f}%" if abs(value) >= 9.95 else f"{value:+.1f}%"


def duration(seconds: float) -> str:
    """Seconds in the two largest units.

    >>> duration(42), duration(125), duration(7_500), duration(200_000)
    ('42s', '2m05s', '2h05m', '2d07h')
    """
    whole = round(seconds)
    for size, unit, below, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{small}"
    return f"{whole}s"


def hours(seconds: float) -> str:
    """Elapsed time in seconds, minutes or hours.

    >>> hours(40), hours(600), hours(9000), hours(1e7), hours(3596)
    ('40 s', '10 min', '2.5 h', '2,778 h', '1 h')
    """
    if seconds >= 3570:
        return f"{seconds / 3600:,.0f} h" if seconds >= 35_000 else f"{seconds / 3600:.1f} h".replace(".0 h", " h")
    return f"{seconds / 60:.0f} min" if seconds >= 59.5 else f"{seconds:.0f} s"
