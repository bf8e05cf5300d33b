"""What latents do: their activations on the corpus, statistics and contexts, logit effects, twins in other SAEs."""
