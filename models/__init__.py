"""Backbones: entries (YAML), sites, loading, and the one face that methods see."""
