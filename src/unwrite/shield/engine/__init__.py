"""What shields share: keys, pictures in memory and in folders, surrogates, signed steps, and how a folder is written."""
