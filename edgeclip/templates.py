"""Prompt templates for zero-shot classification. `{}` is where the label goes."""

from __future__ import annotations

from collections.abc import Sequence

from edgeclip.errors import UsageError

photo = ("a photo of a {}.",)
"""The single prompt of the CLIP paper (arXiv 2103.00020, section 3.1.4)."""

general = (
    "a photo of a {}.",
    "a picture showing a {}.",
    "a close view of a {}.",
    "a {} seen from far away.",
    "a drawing of a {}.",
    "a dark, grainy image of a {}.",
    "one {} among other things.",
    "this is a {}.",
)
"""Our own ensemble: several views and media, for averaging in embedding space."""

bare = ("{}",)
"""The label alone."""

NAMED = {"photo": photo, "general": general, "bare": bare}


def fill(templates: Sequence[str], label: str) -> list[str]:
    """One prompt per template.

    Raises:
        UsageError: a template has no `{}`.
    """
    for template in templates:
        if "{}" not in template:
            raise UsageError(f"template {template!r} has no place for the label", hint="write {} where the label goes")
    return [template.replace("{}", label) for template in templates]
