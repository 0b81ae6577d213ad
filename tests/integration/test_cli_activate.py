"""`ekiben activate` refuses what cannot work, in one line."""

import shlex
import socket

import pytest
from typer.testing import CliRunner

from services.cli import app


def told(arguments):
    done = CliRunner().invoke(app, ["activate", *shlex.split(arguments)])
    return done.exit_code, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "say in one way how it is started"),
        ("--command true --deployment a/b", "say in one way how it is started"),
        ("--start-command true", "say in one way how it is started"),
        ("--command no-such-program-here", "there is no program 'no-such-program-here' here"),
        ("--command ''", "--command is empty"),
        ("""--command "'a" """, "--command: No closing quotation"),
        ("--deployment engine", "'engine' is no NAMESPACE/NAME"),
        ("--deployment a/B_c", "'a/B_c' is no NAMESPACE/NAME"),
        ("--deployment a/b --kubernetes-api ftp://x", "--kubernetes-api: 'ftp://x' is no URL"),
        ("--command true --listen 8420", "--listen: '8420' is no HOST:PORT"),
        ("--command true --listen 127.0.0.1:99999", "is no HOST:PORT"),
        ("--command true --upstream 127.0.0.1:8421", "is no URL of a server"),
        ("--command true --upstream http://127.0.0.1:x", "is no URL of a server"),
        ("--command true --upstream http://127.0.0.1:8421/v1", "is no URL of a server"),
        ("--command true --upstream http://127.0.0.1:8420", "the activator would ask itself"),
        ("--command true --metrics-listen 127.0.0.1:8420", "--metrics-listen is where --listen is"),
        ("--command true --ready-path health", "'health' is no path"),
        ("--command true --quiet-path /a/{b}", "is no path"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    status, said = told(arguments)

    assert (status, message in said, said.count("\n")) == (1, True, 1), said


@pytest.mark.parametrize("option", ["--start-seconds 0", "--queue 0", "--replicas 0", "--idle-seconds x"])
def test_numbers_are_checked(option):
    assert told(f"--command true {option}")[0] == 2


def test_an_address_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = told(f"--start-command true --stop-command true --listen 127.0.0.1:{port} --upstream http://127.0.0.1:9")

    assert status == 1
    assert "cannot listen" in said
