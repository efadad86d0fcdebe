"""The built-in losses: one file each, found by its name. Nothing here lists them."""
