"""Eyes for a frozen language model: hierarchical visual features written into its feed-forward memory."""

__version__ = "0.1.0"
