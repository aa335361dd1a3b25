"""The machine that a run is on: its devices, processes, memory, signals, and the places that it can reach."""
