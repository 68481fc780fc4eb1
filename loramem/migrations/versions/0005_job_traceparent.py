"""Jobs say which trace asked for them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("job", sa.Column("traceparent", sa.String(64)))


def downgrade() -> None:
    with op.batch_alter_table("job") as batch:
        batch.drop_column("traceparent")
