"""projgrad on torch."""
