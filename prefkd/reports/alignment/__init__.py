"""How two tokenizers align on preference pairs, before any model is loaded: numbers, a verdict, and a page."""
