"""Engines that never hold what a loss is summed from; the same values as their plain twins."""
