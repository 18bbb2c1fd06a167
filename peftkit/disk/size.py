"""Bytes in words, for messages that come before anything heavy is loaded."""


def show_bytes(count: float) -> str:
    """Bytes in the binary unit that keeps the number short, to three significant digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{_three_digits(count)} {unit}"
        count /= 1024
    return f"{_three_digits(count)} TiB"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
