"""Narrators write reference narratives, raters judge them (paper 3)."""
