"""Images: the sources they come from, and the one door through which each is opened."""
