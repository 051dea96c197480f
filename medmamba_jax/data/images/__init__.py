"""Image files and arrays: decoding, windows of intensity, resizing, augmentation."""
