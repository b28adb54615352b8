"""What writes reference narratives and what rates them (paper 3)."""
