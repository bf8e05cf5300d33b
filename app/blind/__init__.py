"""Blind labelling: a design, the latents drawn for it, what a rater sees of them, and the labels."""
