"""Stand-ins that tests of several rooms share, one noun a file: the one place for them."""
