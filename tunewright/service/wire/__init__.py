"""Wire formats: what clients send and are sent, as pure functions from and to what the service keeps."""
