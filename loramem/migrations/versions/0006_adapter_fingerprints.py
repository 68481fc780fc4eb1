"""Whether a namespace has live adapters of another base model is read from the index alone."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.drop_index("ix_adapter_namespace", "adapter")
    op.create_index("ix_adapter_namespace", "adapter", ["namespace", "state", "fingerprint"])


def downgrade() -> None:
    op.drop_index("ix_adapter_namespace", "adapter")
    op.create_index("ix_adapter_namespace", "adapter", ["namespace", "state"])
