"""The demo: a page on this machine on which a grid's models narrate one history side by side."""
