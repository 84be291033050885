"""How agreement with the reference is shown."""

from __future__ import annotations

from edgeclip.parity import Agreement, Bounds

COLUMNS = ("cos mean", "cos min", "max abs", "top-1")


def measured(agreement: Agreement | None) -> list[str]:
    """Cells for `COLUMNS`."""
    if agreement is None:
        return [""] * len(COLUMNS)
    return [
        f"{agreement.cosine_mean:.7f}",
        f"{agreement.cosine_min:.7f}",
        f"{agreement.max_abs:.1e}",
        f"{agreement.top1_agreement:.3f}",
    ]


def allowed(name: str, bounds: Bounds) -> str:
    """The bounds, in the order of `COLUMNS`."""
    return (
        f"bounds of {name}: mean >= {bounds.cosine_mean:g}, min >= {bounds.cosine_min:g}, "
        f"abs <= {bounds.max_abs:g}, top-1 >= {bounds.top1_agreement:g}"
    )


def megabytes(size: int) -> str:
    """Bytes as MB (10^6), with a digit that tells small files apart."""
    return f"{size / 1e6:.1f}" if size >= 1e5 else f"{size / 1e6:.3f}"
