"""From rows of a preference data set to batches of tokens: formats, pairs, templates, tokenizing, batches."""
