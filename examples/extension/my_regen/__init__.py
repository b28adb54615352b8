"""Parts of one's own for regen."""
