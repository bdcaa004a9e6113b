"""How `&` finds the nearest point: what is merged, which method is chosen, and the methods."""
