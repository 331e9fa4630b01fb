"""What always holds, as predicates over what the world saw become durable."""
