"""What a run leaves behind, and how it comes back: saving, loading, going on from it, exporting."""
