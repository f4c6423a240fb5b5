"""Reports: what several retrievers reached, side by side."""
