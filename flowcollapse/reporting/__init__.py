"""Results as one page for a browser, which needs neither a network nor Python."""
