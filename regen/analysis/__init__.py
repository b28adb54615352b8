"""What explains an adapter and a data set, computed and drawn (paper 6, appendices D and E)."""
