"""How far the methods are from plain computations of the same, in steps and whole trainings."""
