"""What a model file is to the rest of the package: sources, sinks, tiles, transforms, and the budget of memory."""
