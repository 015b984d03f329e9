"""Images: the one importer of Pillow."""
