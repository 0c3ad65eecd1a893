"""Many clips of one bundle: text first, every network loaded once, and no clip made twice."""
