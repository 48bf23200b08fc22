"""What a fold did."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Folded:
    """`places` that were rewritten, and a reason for each one that was not."""

    places: int = 0
    refused: list[str] = field(default_factory=list)

    def accept(self, refusal: str | None) -> bool:
        """Note one place; true if it may be rewritten, which is when there is no `refusal`."""
        if refusal is None:
            self.places += 1
        else:
            self.refused.append(refusal)
        return refusal is None
