"""Upscaling images and scoring them."""
