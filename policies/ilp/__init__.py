"""`ilp`: placement by CP-SAT."""
