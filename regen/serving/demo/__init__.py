"""The demo: local web pages to compare the models of a grid, or to converse with a recommender."""
