"""Images to caption rows: perspectives, backends that answer them, clean-up, and how diverse the answers are."""
