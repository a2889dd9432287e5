"""Parts of the denoising loop, one file a method."""
