"""Numbers: the table of metrics with their formulas, losses, and what tells trained from random."""
