"""What a unit with a user of its own can read."""

from pathlib import Path

import pytest

from deploy import sight


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose own way is taken for open."""
    real = sight._way
    monkeypatch.setattr(sight, "_way", lambda path: [one for one in real(path) if one.is_relative_to(tmp_path)])
    tmp_path.chmod(0o755)
    return tmp_path


def test_what_everybody_may_read_is_seen(place):
    (place / "python").touch(0o755)

    assert sight.unseen([place / "python", place], hidden=()) == []


def test_what_others_may_not_enter_is_told_with_the_folder(place):
    (place / "home").mkdir(0o700)
    (place / "home" / "python").touch(0o755)
    (place / "link").symlink_to(place / "home" / "python")
    (place / "secret").touch(0o600)
    told = sight.unseen([place / "link", place / "home" / "python"], hidden=())

    assert [f"{place / 'home'} is closed" in line for line in told] == [True, True]
    assert len(sight.unseen([place / "secret", place / "none"], hidden=())) == 2


def test_what_is_in_tmp_is_refused():
    assert "temporary files" in sight.unseen([Path("/tmp/project")])[0]
