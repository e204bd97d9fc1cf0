"""What the demo suite of multiple choice knows, and the items made from it."""
