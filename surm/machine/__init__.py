"""The machine that a run uses: its devices, processes, memory, signals, and the object stores it can reach."""
