"""Faults of a data set's files, collected and reported together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

SHOWN = 5  # of many similar faults, such as missing images


class DatasetError(ValueError):
    """A data set's files cannot be used; `faults` holds one sentence per file or kind of fault."""

    def __init__(self, name: str, folder: Path, page: str, faults: Sequence[str]) -> None:
        super().__init__(name, folder, page, tuple(faults))
        self.faults = tuple(faults)
        self._head = f"{name} in {folder} cannot be used, {len(faults)} fault(s):"
        self._foot = f"{name} and the form of its files: {page}, docs/datasets.md"

    def __str__(self) -> str:
        return "\n".join([self._head, *(f"  - {fault}" for fault in self.faults), self._foot])


class Faults:
    """A collection of the faults of one folder.

    Args:
        name: of the data set.
        folder: that was opened; files in it are named relative to it.
        page: where the data set is described and downloaded.
    """

    def __init__(self, name: str, folder: Path, page: str) -> None:
        self.name, self.folder, self.page = name, folder, page
        self._found: list[str] = []

    def add(self, path: Path, got: str, expected: str) -> None:
        """Add one fault."""
        self._found.append(f"{self._short(path)}: {got}; expected {expected}")

    def add_many(self, path: Path, kind: str, cases: Sequence[str], expected: str) -> None:
        """Add similar faults as one; add nothing without cases."""
        if cases:
            self.add(path, counted(kind, cases), expected)

    def extend(self, faults: Sequence[str]) -> None:
        """Add complete sentences about the faults of another file."""
        self._found.extend(faults)

    def add_lengths(self, lengths: Mapping[Path, int], of: Path) -> None:
        """Add a fault for each list that is not as long as the one in `of`."""
        for path, length in lengths.items():
            if of in lengths and length != lengths[of]:
                self.add(path, f"{length} entries", f"{lengths[of]}, as {self._short(of)} has")

    def check_place(self, marks: Sequence[str]) -> None:
        """Check that the folder exists and holds one of `marks`; else search one level up and down.

        Raises:
            DatasetError: it is not the data set's own folder.
        """
        expected = f"the folder that holds {' or '.join(marks)}"
        if not self.folder.is_dir():
            self.add(self.folder, "no such folder", expected)
        elif not _holds(self.folder, marks):
            near = [self.folder.parent, *sorted(path for path in self.folder.iterdir() if path.is_dir())]
            right = [path for path in near if _holds(path, marks)]
            self.add(self.folder, "a folder without them", f"{expected}{f': {right[0]}' if right else ''}")
        self.check()

    def check(self) -> None:
        """Raise all faults, if any.

        Raises:
            DatasetError: with every fault.
        """
        if self._found:
            raise DatasetError(self.name, self.folder, self.page, self._found)

    def _short(self, path: Path) -> str:
        inside = path != self.folder and path.is_relative_to(self.folder)
        return str(path.relative_to(self.folder) if inside else path)


def counted(kind: str, cases: Sequence[str]) -> str:
    """Number of cases of one kind, and the first few."""
    more = f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else ""
    return f"{len(cases)} {kind}: {', '.join(cases[:SHOWN])}{more}"


def _holds(folder: Path, marks: Sequence[str]) -> bool:
    return any((folder / mark).exists() for mark in marks)
