"""projgrad on jax."""
