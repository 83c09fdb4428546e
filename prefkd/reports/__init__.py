"""What people look at: how two tokenizers align, what weights a teacher's scores make, the curves of runs."""
