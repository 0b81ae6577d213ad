"""What Alembic runs: the migrations, on the connection that `accounts/schema.py` gives, or as SQL for the dialect it names."""

from alembic import context

from accounts.database import metadata

given = context.config.attributes
if context.is_offline_mode():
    context.configure(dialect_name=given["dialect"], target_metadata=metadata, literal_binds=True)
else:
    context.configure(connection=given["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
