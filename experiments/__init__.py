"""The experiments: readable loops over the library, which never imports them."""
