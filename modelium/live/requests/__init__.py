"""From arrival to an engine: the queue, the slots, and who gets which."""
