"""Flags that train language models with experts."""

LANGUAGE = ["--task", "language_modeling", "--tokens-per-sample", "16", "--criterion", "moe_cross_entropy"]
MASKED = ["--task", "masked_lm", "--tokens-per-sample", "16", "--criterion", "masked_lm_moe_cross_entropy"]
