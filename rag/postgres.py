"""PostgreSQL with pgvector as the store: a version is a table of chunks with vectors, one of words with weights, one of owners.

Chunks are wide. So that words are counted without them, each word's row names its owner: a tenant with labels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from pgvector.psycopg import register_vector
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.sql import SQL, Composed, Identifier, Literal
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from rag.access import Access
from rag.embedding import NoEmbeddings
from rag.lexical import tokens, weights
from rag.store import ANN_ROWS, BATCH, EMPTY, ChunkStore, Near, StoreError, completed, searched
from rag.versions import Version, Versions

_TIMEOUT = 5  # seconds for a connection
_CANDIDATES = 200  # of the approximate index; pgvector looks at up to 1,000
_LONGEST_TERM = 200  # characters
_KINDS = {"page": "int4", "position": "int4", "labels": "text[]"}
_COLUMNS = {"id": "text", "text": "text", **{name: _KINDS.get(name, "text") for name in EMPTY}, "vector": "vector"}
_NAMES = SQL(", ").join(map(Identifier, _COLUMNS))
_TOLD = SQL(", ").join(Identifier("c", name) for name in _COLUMNS if name != "vector")
_ALLOWED = SQL("(c.tenant IN ('', %(tenant)s) AND (cardinality(c.labels) = 0 OR c.labels && %(labels)s::text[]))")
_SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS ekiben;
CREATE TABLE IF NOT EXISTS ekiben.versions (
    collection text, version text, card jsonb NOT NULL, chunks int8 NOT NULL, made timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (collection, version)
);
CREATE TABLE IF NOT EXISTS ekiben.current (
    collection text PRIMARY KEY, version text NOT NULL,
    FOREIGN KEY (collection, version) REFERENCES ekiben.versions
);
"""


class _Server:
    """Connections to one database; the schema is there from the first one on."""

    def __init__(self, url: str) -> None:
        self._where = _where(url)
        with self._reported():
            # The pool would try for half a minute and not say why.
            with psycopg.connect(url, connect_timeout=_TIMEOUT) as connection:
                if not connection.execute("SELECT to_regclass('ekiben.current')").fetchone()[0]:  # pyright: ignore[reportOptionalSubscript]
                    connection.execute("SELECT pg_advisory_xact_lock(hashtext('ekiben'))")
                    connection.execute(_SCHEMA)
            self._pool = ConnectionPool(
                url, min_size=1, max_size=4, timeout=2 * _TIMEOUT, configure=register_vector, open=True,
                check=ConnectionPool.check_connection, kwargs={"connect_timeout": _TIMEOUT},
            )  # fmt: skip

    @contextmanager
    def __call__(self) -> Generator[psycopg.Connection[Any]]:
        """Give a connection for one transaction."""
        with self._reported(), self._pool.connection() as connection:
            yield connection

    @contextmanager
    def _reported(self) -> Generator[None]:
        try:
            yield
        except psycopg.Error as error:
            told = str(error).strip().splitlines()
            msg = f"{self._where}: {told[0] if told else type(error).__name__}; see that it runs and that `store` is right"
            raise StoreError(msg) from error

    def close(self) -> None:
        self._pool.close()


class PostgresVersions(Versions):
    """Versions of a collection in one database, in the schema `ekiben`."""

    def __init__(self, url: str, collection: str) -> None:
        self._server = _Server(url)
        self.collection = collection

    def all(self) -> list[Version]:
        """Return the registered versions, oldest first."""
        query = """
            SELECT v.version, to_char(v.made, 'YYYY-MM-DD HH24:MI'), v.chunks, c.version IS NOT NULL
            FROM ekiben.versions v LEFT JOIN ekiben.current c USING (collection, version)
            WHERE v.collection = %s ORDER BY v.made, v.version"""
        with self._server() as connection:
            return [Version(*row) for row in connection.execute(query, [self.collection])]

    def card(self, version: str) -> dict[str, Any] | None:
        """Return how a registered version was made; None where there is no such version."""
        query = "SELECT card FROM ekiben.versions WHERE collection = %s AND version = %s"
        with self._server() as connection:
            row = connection.execute(query, [self.collection, version]).fetchone()
        return row and row[0]

    def begin(self, version: str, dimensions: int) -> PostgresStore:
        """Return an empty store for a version."""
        chunks, words, owners = self._tables(version)
        kinds = {**_COLUMNS, "vector": f"vector({dimensions:d})"}
        columns = SQL(", ").join(
            SQL("{} {} NOT NULL").format(Identifier(name), SQL(kind))  # pyright: ignore[reportArgumentType]  our own
            for name, kind in kinds.items()
        )
        self.remove(version)
        with self._server() as connection:
            connection.execute(
                SQL("CREATE TABLE {} (n int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {}, UNIQUE (id))").format(chunks, columns)
            )
            connection.execute(
                SQL(
                    "CREATE TABLE {} (term text NOT NULL, n int8 NOT NULL REFERENCES {} ON DELETE CASCADE,"
                    " weight float4 NOT NULL, owner int4 NOT NULL)"
                ).format(words, chunks)
            )
            connection.execute(
                SQL("CREATE TABLE {} (owner int4 PRIMARY KEY, tenant text NOT NULL, labels text[] NOT NULL)").format(owners)
            )
        return PostgresStore(self._server, self._tables(version), NoEmbeddings())

    def register(self, version: str, card: dict[str, Any]) -> None:
        """Say that a version is whole."""
        chunks, _, _ = self._tables(version)
        query = SQL("INSERT INTO ekiben.versions (collection, version, card, chunks) SELECT %s, %s, %s, count(*) FROM {}")
        with self._server() as connection:
            connection.execute(query.format(chunks), [self.collection, version, Jsonb(card)])

    def open(self, version: str, embeddings: Embeddings) -> PostgresStore:
        """Return the store of a registered version."""
        return PostgresStore(self._server, self._tables(version), embeddings)

    def current(self) -> str | None:
        """Return the version that is searched; None where none is."""
        with self._server() as connection:
            row = connection.execute("SELECT version FROM ekiben.current WHERE collection = %s", [self.collection]).fetchone()
        return row and row[0]

    def switch(self, version: str) -> None:
        """Let searches that begin from now on go to this version."""
        query = """
            INSERT INTO ekiben.current (collection, version) VALUES (%s, %s)
            ON CONFLICT (collection) DO UPDATE SET version = excluded.version"""
        with self._server() as connection:
            connection.execute(query, [self.collection, version])

    def remove(self, version: str) -> None:
        """Remove a version, whole or not; the one that is searched is refused by its foreign key."""
        with self._server() as connection:
            connection.execute("DELETE FROM ekiben.versions WHERE collection = %s AND version = %s", [self.collection, version])
            connection.execute(SQL("DROP TABLE IF EXISTS {1}, {2}, {0}").format(*self._tables(version)))

    def close(self) -> None:
        """Let go of connections."""
        self._server.close()

    def _tables(self, version: str) -> tuple[Identifier, Identifier, Identifier]:
        # Names in PostgreSQL end after 63 bytes, and two collections may have the same documents.
        name = f"{hashlib.sha256(self.collection.encode()).hexdigest()[:8]}_{version}"
        chunks, words, owners = (Identifier("ekiben", f"{kind}_{name}") for kind in ("chunks", "words", "owners"))
        return chunks, words, owners


class PostgresStore(ChunkStore):
    """One version: cosine distance by pgvector, BM25 as a sum of weights that were worked out when it was finished."""

    def __init__(self, server: _Server, tables: tuple[Identifier, Identifier, Identifier], embeddings: Embeddings) -> None:
        super().__init__(embeddings)
        self._server = server
        self._names = dict(zip(("chunks", "words", "owners"), tables, strict=True))

    def _sql(self, query: Any, **parts: Any) -> Composed:
        return SQL(query).format(**self._names, **parts)

    def put(self, documents: Sequence[Document], vectors: Any) -> None:
        """Add documents with their vectors; equal ids are replaced."""
        import numpy as np

        if any("\0" in document.page_content for document in documents):
            msg = "a text holds the character NUL, which PostgreSQL cannot keep; take it out of the document"
            raise StoreError(msg)
        kept = SQL(", ").join(SQL("{0} = excluded.{0}").format(Identifier(name)) for name in _COLUMNS if name != "id")
        with self._server() as connection, connection.cursor() as cursor:
            cursor.execute(self._sql("CREATE TEMP TABLE incoming (LIKE {chunks}) ON COMMIT DROP"))
            with cursor.copy(SQL("COPY incoming (n, {}) FROM STDIN (FORMAT BINARY)").format(_NAMES)) as copy:
                copy.set_types(["int8", *_COLUMNS.values()])
                for number, (document, vector) in enumerate(zip(documents, np.asarray(vectors, np.float32), strict=True)):
                    told = completed(document)
                    copy.write_row([number, document.id, document.page_content, *(told[name] for name in EMPTY), vector])
            cursor.execute(
                self._sql(
                    "INSERT INTO {chunks} ({names}) SELECT {names} FROM incoming ORDER BY n"
                    " ON CONFLICT (id) DO UPDATE SET {kept}",
                    names=_NAMES, kept=kept,
                )
            )  # fmt: skip

    def finish(self) -> None:
        """Index what was written since, in one transaction."""
        with self._server() as connection, connection.cursor() as cursor:
            rows = cursor.execute(self._sql("SELECT n, tenant, labels, heading, text FROM {chunks} ORDER BY n")).fetchall()
            cursor.execute(self._sql("TRUNCATE {words}, {owners}"))
            kinds: dict[tuple[str, tuple[str, ...]], int] = {}
            numbers = [(n, kinds.setdefault((tenant, tuple(labels)), len(kinds))) for n, tenant, labels, _, _ in rows]
            cursor.executemany(
                self._sql("INSERT INTO {owners} VALUES (%s, %s, %s)"), [(n, kind[0], list(kind[1])) for kind, n in kinds.items()]
            )
            texts = [searched(Document(page_content=text, metadata={"heading": heading})) for *_, heading, text in rows]
            with cursor.copy(self._sql("COPY {words} (term, n, weight, owner) FROM STDIN (FORMAT BINARY)")) as copy:
                copy.set_types(["text", "int8", "float4", "int4"])
                for term, places, scores in weights(texts):
                    for place, score in zip(places, scores, strict=True):
                        number, owner = numbers[place]
                        copy.write_row([_key(term), number, score, owner])
            cursor.execute(self._sql("CREATE INDEX IF NOT EXISTS {name} ON {words} (term)", name=self._index("t")))
            if len(rows) >= ANN_ROWS:
                cursor.execute("SET LOCAL maintenance_work_mem = '512MB'")
                cursor.execute(
                    self._sql(
                        "CREATE INDEX IF NOT EXISTS {name} ON {chunks} USING hnsw (vector vector_cosine_ops)",
                        name=self._index("v"),
                    )
                )
            cursor.execute(self._sql("ANALYZE {chunks}, {words}, {owners}"))

    def _index(self, kind: str) -> Identifier:
        return Identifier(f"{self._names['chunks'].as_string().rpartition('.')[2].strip(chr(34))}_{kind}")

    def batches(self) -> Iterator[tuple[list[Document], Any]]:
        """Yield every document in the order of writing, with its vector."""
        import numpy as np

        with self._server() as connection, connection.cursor("reading", row_factory=dict_row) as cursor:
            cursor.execute(self._sql("SELECT {told}, c.vector FROM {chunks} c ORDER BY n", told=_TOLD))
            while rows := cursor.fetchmany(BATCH):
                yield [_document(row) for row in rows], np.stack([_array(row["vector"]) for row in rows])

    def count(self) -> int:
        """Return how many chunks there are."""
        with self._server() as connection:
            [[count]] = connection.execute(self._sql("SELECT count(*) FROM {chunks}")).fetchall()
        return count

    def delete(self, ids: list[str] | None = None, **_: Any) -> bool:
        """Delete texts by id."""
        with self._server() as connection:
            connection.execute(self._sql("DELETE FROM {chunks} WHERE id = ANY(%s)"), [ids or []])
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the texts with these ids."""
        return self._documents(SQL("c.id = ANY(%(ids)s)"), {"ids": list(ids)}, None)

    def nearest(self, vector: list[float], k: int, access: Access | None) -> list[Near]:
        """Return the k texts nearest to a vector, the nearest first."""
        import numpy as np

        asked = {"vector": np.asarray(vector, np.float32), "k": k, **_told(access)}
        query = self._sql(
            "SELECT {told}, c.vector, 1 - (c.vector <=> %(vector)s) AS score FROM {chunks} c WHERE {allowed}"
            " ORDER BY c.vector <=> %(vector)s LIMIT %(k)s",
            told=_TOLD, allowed=_allowed(access),
        )  # fmt: skip
        with self._server() as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                SQL("SET LOCAL hnsw.iterative_scan = strict_order; SET LOCAL hnsw.ef_search = {}").format(
                    Literal(min(max(k, _CANDIDATES), 1000))
                )
            )
            rows = cursor.execute(query, asked).fetchall()
            if len(rows) < k:
                # The approximate index gives up after 20,000 chunks that may not be seen.
                cursor.execute("SET LOCAL enable_indexscan = off")
                rows = cursor.execute(query, asked).fetchall()
        return [Near(_document(row), float(row["score"]), _array(row["vector"])) for row in rows]

    def matching(self, question: str, k: int, access: Access | None) -> dict[str, float]:
        """Return id -> BM25 score for the k best texts that share a term with the question."""
        terms = Counter(_key(term) for term in tokens(question))
        asked = {"terms": list(terms), "times": list(terms.values()), "k": k, **_told(access)}
        query = self._sql(
            """
            SELECT c.id, found.score FROM (
                SELECT w.n, sum(w.weight::float8 * q.times) AS score
                FROM unnest(%(terms)s::text[], %(times)s::int4[]) AS q(term, times) JOIN {words} w USING (term)
                WHERE w.owner = ANY (ARRAY(SELECT c.owner FROM {owners} c WHERE {allowed}))
                GROUP BY w.n ORDER BY score DESC, w.n LIMIT %(k)s
            ) found JOIN {chunks} c USING (n) ORDER BY found.score DESC, n""",
            allowed=_allowed(access),
        )
        with self._server() as connection:
            connection.execute("SET LOCAL jit = off")  # compiling takes longer than the query
            return {identity: float(score) for identity, score in connection.execute(query, asked)}

    def of_sections(self, parents: Sequence[str], positions: Sequence[int], access: Access | None) -> list[Document]:
        """Return the chunks of these sections that stand at one of these positions."""
        asked = {"parents": list(parents), "positions": list(positions)}
        which = SQL("c.parent = ANY(%(parents)s) AND c.position = ANY(%(positions)s::int4[])")
        return self._documents(which, asked, access)

    def _documents(self, which: SQL, asked: dict[str, Any], access: Access | None) -> list[Document]:
        parts = {"which": which, "told": _TOLD, "allowed": _allowed(access)}
        query = self._sql("SELECT {told} FROM {chunks} c WHERE {which} AND {allowed}", **parts)
        with self._server() as connection, connection.cursor(row_factory=dict_row) as cursor:
            return [_document(row) for row in cursor.execute(query, {**asked, **_told(access)})]

    def close(self) -> None:
        """The connections belong to the versions."""


def _allowed(access: Access | None) -> SQL:
    return SQL("true") if access is None else _ALLOWED


def _told(access: Access | None) -> dict[str, Any]:
    if access is None:
        return {}
    # No text in PostgreSQL has a NUL in it, so no chunk is hidden from whom it is for.
    labels = [label for label in access.labels if "\0" not in label]
    return {"tenant": "" if "\0" in access.tenant else access.tenant, "labels": labels}


def _key(term: str) -> str:
    """Return a term as it is looked up: an index of PostgreSQL holds no value of several kilobytes."""
    return term if len(term) <= _LONGEST_TERM else hashlib.sha256(term.encode()).hexdigest()


def _document(row: dict[str, Any]) -> Document:
    return Document(page_content=row["text"], metadata={name: row[name] for name in EMPTY}, id=row["id"])


def _array(vector: Any) -> Any:
    return vector.to_numpy() if hasattr(vector, "to_numpy") else vector


def _where(url: str) -> str:
    told = conninfo_to_dict(url)
    return f"PostgreSQL at {told.get('host') or 'localhost'}, database {told.get('dbname') or 'of the user'!r}"
