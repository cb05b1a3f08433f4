"""Groups of units that live and die together in a graph, and their removal."""
