"""Weight files: what is published, how it is downloaded, read, recognised, checked and exported."""
