"""How an accuracy card is shown."""

from __future__ import annotations

from typing import Any

import msgspec

from edgeclip.card import Card, CardScore
from edgeclip.cli.output import Output
from edgeclip.cli.parity import megabytes

STALE = "measured on other artifacts: stale"
COLUMNS = ("data", "metric", "value", "95 % interval", "images", "note")


def show(output: Output, card: Card, *, stale: bool) -> None:
    """Print the card; with `--json` it is the document's `card`."""
    output.document["card"] = described(card, stale=stale)
    output.table(f"Accuracy{f' ({STALE})' if stale else ''}", COLUMNS, [_row(card, score) for score in card.scores])
    facts = {"measured with": f"{card.backend}, {card.precision} in {card.compute}"}
    if card.cost is not None:
        cost = card.cost
        facts["size"] = f"{megabytes(cost.size_bytes)} MB"
        facts["one image, pixels ready"] = f"{cost.image_ms:.2f} ms"
        facts["one text"] = f"{cost.text_ms:.2f} ms"
        facts["on"] = f"{cost.cpu}, {cost.threads} thread{'s' if cost.threads > 1 else ''}"
    output.facts("", facts)


def described(card: Card, *, stale: bool) -> dict[str, Any]:
    """The card as JSON, with whether it is stale."""
    return {**msgspec.to_builtins(card), "stale": stale}


def _row(card: Card, score: CardScore) -> list[str]:
    return [
        score.data,
        score.metric.replace("_", " "),
        f"{100 * score.value:.1f} %",
        f"{100 * score.low:.1f} - {100 * score.high:.1f}",
        str(score.n),
        card.notes.get(score.data, ""),
    ]
