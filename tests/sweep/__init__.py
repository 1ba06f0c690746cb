"""Calls every public function of JAX and optax with simple arguments, and saves and loads it."""
