"""The database says which one it is."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    installation = op.create_table("installation", sa.Column("id", sa.String(32), primary_key=True))
    # by the oldest job where there is one, so that a backup of before that is upgraded again is the same database
    first = op.get_bind().scalar(sa.text("SELECT min(id) FROM job"))
    op.bulk_insert(installation, [{"id": (uuid.uuid5(uuid.NAMESPACE_OID, first) if first else uuid.uuid4()).hex}])


def downgrade() -> None:
    op.drop_table("installation")
