"""Alembic scripts, shipped with the package; `loramem.migrate` runs them."""
