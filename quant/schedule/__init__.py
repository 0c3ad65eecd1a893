"""Which steps of a clip need the transformer, found on clips of the bundle itself."""
