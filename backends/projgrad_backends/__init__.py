"""What differs per framework, and only that; imported through the doors of `projgrad`."""
