"""A small program in the engine's place, dumped and continued by a real criu: what is in the image, and what is not."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from deploy import namespace
from deploy.criu import Criu
from deploy.revival import Handover, Program, RevivalFailed, dump, revive
from deploy.snapshot import IMAGES, Facts, Manifest, described
from services.snapshots import try_out
from tests.criu_here import criu_here

CRIU, REASON = criu_here()
pytestmark = pytest.mark.skipif(CRIU is None, reason=f"no working criu: {REASON}")
ROOT = Path(__file__).resolve().parents[2]
SECRET = "planted-where-a-key-would-be"
FACTS = Facts(
    box="", cpu="", flags=frozenset(), cores=1, kernel="", criu="", python="", packages={}, places={}
)  # what they say is not looked at here
# Its random state is the same in every image of it; a child runs beside it; it says what it was told.
ENGINE = """
    import http.server, json, os, random, subprocess, sys, tempfile
    random.seed(1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    kept = tempfile.NamedTemporaryFile()
    os.write(int(sys.argv[1]), b"warm")
    os.close(int(sys.argv[1]))
    told = json.loads(sys.stdin.readline())
    if told["key"] == "end":
        sys.exit(7)
    from services.renewal import renew
    renew()
    kept.write(b"x")

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            said = {"pid": os.getpid(), "child": child.pid, "alive": child.poll() is None, "random": random.random(), **told}
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *_):
            pass

    print("listening", flush=True)
    http.server.HTTPServer((told["host"], told["port"]), Answer).serve_forever()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def program(folder, code=ENGINE):
    (folder / "engine.py").write_text(textwrap.dedent(code))
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": namespace.SCRATCH, "PYTHONPATH": str(ROOT)}
    return Program([sys.executable, str(folder / "engine.py")], [], environment, ROOT)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    """The folder and manifest of a dumped program, made where the environment held a secret."""
    folder = tmp_path_factory.mktemp("snapshot")
    (folder / IMAGES).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EKIBEN_ENGINE_KEY", SECRET)
        dumped = dump(CRIU, program(folder), folder / IMAGES, limit=60)
    files = described(folder / IMAGES)
    manifest = Manifest(
        name="light", made_at=datetime.now(UTC), facts=FACTS, process=dumped.process, descriptors=dumped.descriptors,
        models=[], start_seconds=dumped.start_seconds, files=files,
    )  # fmt: skip
    return folder, manifest


def ask(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    return json.loads(connection.getresponse().read())


def below(process):
    return psutil.Process(process).children(recursive=True)


def test_it_goes_on_with_its_children_and_what_it_is_told(snapshot):
    port = free_port()
    process = revive(CRIU, *snapshot, Handover("127.0.0.1", port, SECRET))
    try:
        said = ask(port)
        tree = below(process)
    finally:
        status = namespace.end(process, seconds=10)

    assert (said["pid"], said["alive"]) == (snapshot[1].process, True)
    assert (said["host"], said["port"], said["key"]) == ("127.0.0.1", port, SECRET)
    assert len(tree) == 2
    assert status == 128 + signal.SIGTERM
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in tree)


def test_two_at_once_have_other_random_numbers(snapshot):
    ports = [free_port() for _ in range(2)]
    processes = [revive(CRIU, *snapshot, Handover("127.0.0.1", port, None)) for port in ports]
    try:
        said = [ask(port) for port in ports]
    finally:
        for process in processes:
            namespace.end(process, seconds=10)

    assert said[0]["random"] != said[1]["random"]
    assert said[0]["pid"] == said[1]["pid"]


def test_no_secret_is_in_the_image(snapshot):
    folder, manifest = snapshot

    assert manifest.bytes > 2**20
    assert not [path.name for path in (folder / IMAGES).iterdir() if SECRET.encode() in path.read_bytes()]


def test_it_dies_with_whoever_restored_it(snapshot, tmp_path):
    folder, manifest = snapshot
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    port = free_port()
    code = (
        "import sys; from pathlib import Path; from deploy import namespace; from deploy.criu import Criu\n"
        "from deploy.revival import Handover, revive; from deploy.snapshot import Manifest\n"
        "criu, folder, manifest, port = sys.argv[1:]\n"
        "read = Manifest.model_validate_json(Path(manifest).read_bytes())\n"
        "process = revive(Criu(Path(criu)), Path(folder), read, Handover('127.0.0.1', int(port), None))\n"
        "print(process, flush=True); sys.exit(namespace.wait(process))"
    )
    words = [sys.executable, "-c", code, str(CRIU.program), str(folder), str(tmp_path / "manifest.json"), str(port)]
    for number, left in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
            process = int(next(line for line in parent.stdout if line.strip().isdecimal()))
            tree = [psutil.Process(process), *below(process)]
            assert ask(port)["alive"]
            parent.send_signal(number)
            assert parent.wait(20) == left
        deadline = time.monotonic() + 10
        while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in tree) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not [one for one in tree if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_one_that_ends_instead_of_answering_is_reported(snapshot):
    with pytest.raises(RevivalFailed, match="ended with 7 when it was continued"):
        revive(CRIU, *snapshot, Handover("127.0.0.1", free_port(), "end"))


def test_an_image_that_is_cut_off_is_reported(snapshot, tmp_path):
    folder, manifest = snapshot
    (tmp_path / IMAGES).mkdir()
    for path in (folder / IMAGES).iterdir():
        content = path.read_bytes()
        (tmp_path / IMAGES / path.name).write_bytes(content[: len(content) // 2] if path.name.startswith("pages-") else content)

    with pytest.raises(RevivalFailed, match="criu restore"):
        try_out(Criu(CRIU.program, seconds=5), tmp_path, manifest)


def test_one_that_does_not_get_warm_is_reported_with_what_it_said(tmp_path):
    (tmp_path / IMAGES).mkdir()

    with pytest.raises(RevivalFailed, match=r"(?s)ended before it was warm.*no such model"):
        dump(CRIU, program(tmp_path, "raise SystemExit('no such model')"), tmp_path / IMAGES, limit=30)
    with pytest.raises(RevivalFailed, match="not warm after 1 s"):
        dump(CRIU, program(tmp_path, "import time; time.sleep(100)"), tmp_path / IMAGES, limit=1)


def continued_into(snapshot, output):
    port = free_port()
    process = revive(CRIU, *snapshot, Handover("127.0.0.1", port, None), output=output)
    try:
        ask(port)
    finally:
        namespace.end(process, seconds=10)


def test_its_output_goes_behind_what_is_in_a_log(snapshot, tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    with log.open("r+") as file:
        file.seek(0, 2)
        continued_into(snapshot, file.fileno())
        file.write("after\n")

    assert log.read_text() == "before\nlistening\nafter\n"


def test_its_output_goes_to_a_socket_such_as_the_journals(snapshot):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        continued_into(snapshot, theirs.fileno())

        assert ours.recv(100) == b"listening\n"
