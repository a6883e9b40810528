"""A detection, a map or a table as text, card or picture."""
