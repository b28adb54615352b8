"""Scores of generated narratives: text metrics, intervals over users, floors and the comparison table (paper 5.2)."""
