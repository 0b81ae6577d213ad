"""Figures that the cluster tier measured, told at the end."""

import pytest

FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[FIGURES] = []


@pytest.fixture
def tell(request):
    """Keep a line for the end of the run."""
    return request.config.stash[FIGURES].append


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(FIGURES, []):
        terminalreporter.write_line(f"cluster: {line}")
