"""Promises of the library, each with the cases that try to break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Cases tried, and a sentence for each failure.

    notes: further measured values, by name.
    """

    cases: int = 0
    failures: list[str] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    def check(self, kept: bool, failure: str) -> None:
        """Count a case, and note its failure."""
        self.cases += 1
        if not kept:
            self.failures.append(failure)


@dataclass(frozen=True)
class Promise:
    """A sentence, and a function of the number of cases that tries to break it.

    long, short: cases of `python -m tests.faults`, and of the test suite; 0 leaves it out there.
    """

    sentence: str
    tried: Callable[[int], Outcome]
    long: int
    short: int
