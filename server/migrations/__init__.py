"""Alembic's migrations of the registry's tables; `Registry.open` runs them."""
