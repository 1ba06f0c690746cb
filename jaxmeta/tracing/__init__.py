"""From JAX functions to nodes, and all that knows jaxprs."""
