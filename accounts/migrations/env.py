"""What Alembic runs: the migrations, on the connection that `accounts/database.py` gives."""

from alembic import context

from accounts.database import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
