"""Fixtures for all tests: a clean environment for each."""

import os  # noqa: TID251  to clean it

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """No test sees the EKIBEN_* settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("EKIBEN_")]:
        monkeypatch.delenv(name)
