"""Each module touches one outside thing, decides nothing, and never imports another adapter."""
