"""The sources of labelled images, each in its own file."""
