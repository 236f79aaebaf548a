"""Everything is imported through this package, so that `utils`, `data` and `models` collide with no other project's."""
