"""The experiments, a folder each, and what they share. An editable install of surm finds them from anywhere."""
