"""Answers that models give to prompts, and the preference pairs that are made of them."""
