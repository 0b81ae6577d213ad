"""Migrations of versions of Ekiben that are yet to come: the present ones, and more."""

import shutil

from accounts.schema import MIGRATIONS

REVISION = '''"""{about}."""

import sqlalchemy as sa
from alembic import op

revision = {revision!r}
down_revision = {before!r}


def upgrade() -> None:
    {up}


def downgrade() -> None:
    {down}
'''
EXPANDING = ("0002_for_0001", "A note on each key, and regions of spend", [
    'op.add_column("keys", sa.Column("note", sa.String(64)))',
    'op.add_column("spend", sa.Column("region", sa.String(16), nullable=False, server_default="here"))',
    'op.create_table("regions", sa.Column("name", sa.String(16), primary_key=True))',
], [
    'op.drop_table("regions")', 'op.drop_column("spend", "region")', 'op.drop_column("keys", "note")',
])  # fmt: skip
CONTRACTING = ("0003_for_0002", "Alerts are kept elsewhere", [
    'op.drop_table("budget_alerts")',
], [
    'op.create_table("budget_alerts", sa.Column("kind", sa.String(8), primary_key=True),'
    ' sa.Column("name", sa.String(128), primary_key=True), sa.Column("period", sa.String(10), primary_key=True),'
    ' sa.Column("level", sa.String(4), primary_key=True))',
])  # fmt: skip
AGAIN = ("0004_for_0002", "Owners of regions", [
    'op.add_column("regions", sa.Column("owner", sa.String(16)))'
], ['op.drop_column("regions", "owner")'])  # fmt: skip


def newer(folder, *revisions):
    """Return a folder of the migrations of a version that has these too."""
    scripts = folder / f"migrations{len(revisions)}"
    shutil.copytree(MIGRATIONS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    before = "0001"
    for revision, about, up, down in revisions:
        text = REVISION.format(about=about, revision=revision, before=before, up="\n    ".join(up), down="\n    ".join(down))
        (scripts / "versions" / f"{revision}.py").write_text(text, encoding="utf-8")
        before = revision
    return scripts
