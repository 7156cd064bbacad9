"""What every registered method costs: time, FLOPs and memory, against a plain reference."""
