"""Files: names reserved, images and sidecars written whole, locks."""
