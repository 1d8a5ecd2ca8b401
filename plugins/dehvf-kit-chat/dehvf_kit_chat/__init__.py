"""A chat page for dehvf-kit: ask one adapter, or two side by side, about an image."""
