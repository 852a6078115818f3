"""What can be asked: each route reads by a wire format, asks store and engine, and writes by the wire format."""
