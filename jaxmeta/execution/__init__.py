"""From nodes to running programs: plans, sessions, queues."""
