"""What calibration must know of a model: its decoder layers, its linears, which share an input, what feeds them."""
