"""Model files on disk: who may read them, whether they are whole, and whether they changed."""
