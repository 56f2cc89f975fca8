"""Which codec each tensor gets: the mixes of the formats' own tools, and overrides by the user."""
