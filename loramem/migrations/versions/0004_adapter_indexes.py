"""Indexes that a route reads adapters by."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_index("ix_adapter_chunk", "adapter", ["chunk_id"])
    op.create_index("ix_adapter_namespace", "adapter", ["namespace", "state"])


def downgrade() -> None:
    op.drop_index("ix_adapter_namespace", "adapter")
    op.drop_index("ix_adapter_chunk", "adapter")
