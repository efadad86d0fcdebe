"""Losses in the trainers of others, each module thin and an extra of its own; see docs/integrations.md."""
