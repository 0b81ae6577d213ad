"""bundle.lock and the Bento's version."""

import pytest

from services.lock import Lock, LockError, adapter_tag, bento_version, read_lock
from services.telemetry import merge_metrics


def test_round_trip_gives_the_same_bytes(tmp_path):
    lock = Lock(name="box", model="m:1", adapters={"a": "a:1"}, indexes={"i": "i:1"})
    lock.write(tmp_path / "one")
    read_lock(tmp_path / "one").write(tmp_path / "two")

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert lock.tags() == ["m:1", "a:1", "i:1"]


def test_an_adapters_tag_and_its_version():
    lock = Lock(name="box", model="m:1", adapters={"a": adapter_tag("box", "a", "v1")})

    assert lock.adapters["a"] == lock.adapter_tag("a", "v1") == "box-adapter-a:v1"
    assert lock.adapter_versions() == {"a": "v1"}


def test_a_missing_or_foreign_lock_says_what_to_run(tmp_path):
    with pytest.raises(LockError, match="ekiben pack"):
        read_lock(tmp_path / "none")
    (tmp_path / "old").write_text('{"version": 0}')
    with pytest.raises(LockError, match="again"):
        read_lock(tmp_path / "old")


def test_the_bentos_version_follows_names_and_contents(tmp_path):
    one, two = tmp_path / "a.py", tmp_path / "b.py"
    one.write_text("1")
    two.write_text("2")
    version = bento_version(tmp_path, [one, two])

    assert bento_version(tmp_path, [two, one]) == version
    two.write_text("3")
    assert bento_version(tmp_path, [one, two]) != version
    two.rename(tmp_path / "c.py")
    assert bento_version(tmp_path, [one, tmp_path / "c.py"]) != version


def test_a_family_of_metrics_stands_only_once():
    ours = '# HELP a x\n# TYPE a counter\na{l="1"} 1\n'
    theirs = "# HELP a x\n# TYPE a counter\na 2\n# HELP b y\n# TYPE b gauge\nb 3\n"

    assert merge_metrics(ours, theirs) == '# HELP a x\n# TYPE a counter\na{l="1"} 1\n# HELP b y\n# TYPE b gauge\nb 3\n'
    assert merge_metrics(ours, "") == ours
