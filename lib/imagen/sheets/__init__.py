"""Contact sheets and comparison pages."""
