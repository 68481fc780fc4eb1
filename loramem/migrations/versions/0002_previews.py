"""Previews: jobs that are of no document, and what they were asked for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("kind", sa.String(16), nullable=False, server_default="build"))
        job.alter_column("document_id", existing_type=sa.String(32), nullable=True)
        job.alter_column("revision", existing_type=sa.Integer(), nullable=True)
    op.create_table(
        "preview",
        sa.Column("job_id", sa.String(32), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("qa", sa.JSON(), nullable=False),
        sa.Column("training", sa.JSON(), nullable=False),
        sa.Column("examples", sa.JSON()),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id"),
    )


def downgrade() -> None:
    op.drop_table("preview")
    op.execute("DELETE FROM job_event WHERE job_id IN (SELECT id FROM job WHERE kind = 'preview')")
    op.execute("DELETE FROM job WHERE kind = 'preview'")
    with op.batch_alter_table("job") as job:
        job.drop_column("kind")
        job.alter_column("document_id", existing_type=sa.String(32), nullable=False)
        job.alter_column("revision", existing_type=sa.Integer(), nullable=False)
