"""What a run is going to need, found without its weights: parameters, memory, floating-point operations, disk."""
