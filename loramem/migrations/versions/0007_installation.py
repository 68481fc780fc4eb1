"""The database says which one it is."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    installation = op.create_table("installation", sa.Column("id", sa.String(32), primary_key=True))
    op.bulk_insert(installation, [{"id": uuid.uuid4().hex}])


def downgrade() -> None:
    op.drop_table("installation")
