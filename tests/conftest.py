"""The word that says how long the long runs are."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-minutes", type=float, default=1.0, help="minutes of each long random run (-m fuzz)"
    )


@pytest.fixture
def fuzz_minutes(request: pytest.FixtureRequest) -> float:
    minutes: float = request.config.getoption("--fuzz-minutes")
    return minutes
