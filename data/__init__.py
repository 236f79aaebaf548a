"""Images, sub-images and data sets."""
