"""projgrad on keras."""
