"""What runs apart from the package, in a process of its own."""
