"""API keys, and what was spent."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("previous_digest", sa.String(64)),
        sa.Column("previous_until", sa.Float),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "spend",
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("tenant", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(16), primary_key=True),
        sa.Column("route", sa.String(128), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("cached_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("micros", sa.BigInteger, nullable=False),
    )
    op.create_index("spend_of_tenants", "spend", ["tenant", "day"])
    op.create_index("spend_of_keys", "spend", ["key", "day"])
    op.create_table(
        "spend_batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "budget_alerts",
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("period", sa.String(10), primary_key=True),
        sa.Column("level", sa.String(4), primary_key=True),
    )


def downgrade() -> None:
    """Remove them."""
    op.drop_table("budget_alerts")
    op.drop_table("spend_batches")
    op.drop_table("spend")
    op.drop_table("keys")
