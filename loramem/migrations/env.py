"""What Alembic runs: always on the open transaction that `loramem.migrate` hands over."""

from alembic import context

from loramem.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
