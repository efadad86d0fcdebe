"""The checks, a module for each part of a group; they are discovered, never listed."""
