"""One file per revision of the schema, numbered in order."""
