"""A page in the browser of this computer, to drop an image on."""
