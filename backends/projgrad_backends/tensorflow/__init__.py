"""projgrad on tensorflow."""
