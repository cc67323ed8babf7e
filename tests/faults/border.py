"""The hypothesis tests of this folder, with more examples than in the test suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import settings

from tests.faults.children import MINUTE, Child
from tests.faults.promises import Outcome, Promise

EXAMPLES = re.compile(r"(\d+) passing(?: examples)?, (\d+) failing")  # by the version of hypothesis
FAILED = re.compile(r"^E +(?:Falsifying example|Failing test case): (?:.*\n)(?:E .*\n)*", re.MULTILINE)


def examples(count: int) -> Outcome:
    """Run every hypothesis test with a number of examples; failures are tests."""

    def run() -> int:
        settings.register_profile("long", deadline=None, max_examples=count, database=None, print_blob=True)
        files = sorted(str(path) for path in Path(__file__).parent.glob("test_*.py"))
        options = ["--hypothesis-profile=long", "--hypothesis-show-statistics", "-q", "-k", "any"]
        return int(pytest.main([*files, *options, "-p", "no:benchmark", "-p", "no:cacheprovider"]))

    child = Child(run)
    status, printed = child.wait(600 * MINUTE), child.output()
    passed = [int(found[1]) + int(found[2]) for found in EXAMPLES.finditer(printed)]
    failures = FAILED.findall(printed)  # one of each test
    if (status and not failures) or not passed:
        failures = [f"status {status}: {printed[-300:]}"]
    return Outcome(sum(passed), failures)


PROMISES = [
    Promise(
        "Any argument of the public functions ends in a result or in a documented error", examples, long=950,
        short=0,
    )
]  # fmt: skip
