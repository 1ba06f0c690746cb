"""What the commands of ``jaxmeta`` do; ``jaxmeta.__main__`` parses their arguments."""
