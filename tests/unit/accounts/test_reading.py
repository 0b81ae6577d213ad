"""The trail is read in the order of time, over processes and files, by filter."""

import pytest

from accounts.audit import AuditLog, Entry
from accounts.chain import chain_files
from accounts.reading import Filter, follow, last, moment, read


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two processes that took turns; ten requests, a minute each."""
    ticks = iter(range(1000))
    now = {"at": ""}
    monkeypatch.setattr("accounts.audit._now", lambda: now["at"] or "2026-03-04T12:00:00.000Z")
    with (
        AuditLog(tmp_path, max_bytes=900, sync_seconds=None) as one,
        AuditLog(tmp_path, max_bytes=900, sync_seconds=None) as other,
    ):
        for number in range(10):
            now["at"] = f"2026-03-04T12:{next(ticks):02d}:00.000Z"
            outcome = "ok" if number % 5 else "refused"
            route = "a" if number < 5 else "b"
            (one, other)[number % 2].append(
                Entry(id=str(number), action="chat", tenant=f"t{number % 3}", route=route, outcome=outcome)
            )
    return tmp_path


def ids(lines):
    return "".join(line["id"] for line in lines)


def test_requests_come_by_time(folder):
    assert len(chain_files(folder)) > 2
    assert ids(read(folder, Filter())) == "0123456789"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(tenant="t1"), "147"), (Filter(route="b"), "56789"), (Filter(outcome="refused"), "05"),
        (Filter(tenant="t2", route="a"), "2"), (Filter(tenant="nobody"), ""),
        (Filter(since="2026-03-04T12:07"), "789"), (Filter(until="2026-03-04T12:02"), "01"),
        (Filter(since="2026-03-05"), ""), (Filter(since="2026-03-04", until="2026-03-05"), "0123456789"),
    ],
)  # fmt: skip
def test_filters(folder, wanted, found):
    assert ids(read(folder, wanted)) == found


def test_the_last_ones(folder):
    assert ids(last(folder, 3, Filter())) == "789"
    assert ids(last(folder, 2, Filter(outcome="refused"))) == "05"
    assert ids(last(folder, 99, Filter())) == "0123456789"
    assert last(folder, 0, Filter()) == []


def test_what_comes_is_followed_half_lines_when_they_are_whole(folder):
    [(path, line)] = [
        (one.path, raw) for one in chain_files(folder) for raw in one.path.read_bytes().splitlines() if b'"id":"9"' in raw
    ]
    pieces = iter([line[:30], line[30:] + b"\n"])

    def wait():
        with path.open("ab") as file:
            file.write(next(pieces))

    followed = follow(folder, Filter(), wait=wait)

    assert next(followed)["id"] == "9"
    with pytest.raises(StopIteration):
        next(pieces)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-03-04", "2026-03-04"), ("2026-03-04T12:00", "2026-03-04T12:00:00.000Z"),
        ("2026-03-04T12:00:00+02:00", "2026-03-04T10:00:00.000Z"), ("2026-03-04T12:00:00Z", "2026-03-04T12:00:00.000Z"),
    ],
)  # fmt: skip
def test_times_are_of_utc(text, at):
    assert moment(text) == at


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "", "2026"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        moment(text)
