"""How good models are: preference accuracy, answers and their scorers, lm-eval's tasks, and the table of it all."""
