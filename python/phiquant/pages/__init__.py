"""Pages and notebook displays: one self-contained file each, without scripts or requests."""
