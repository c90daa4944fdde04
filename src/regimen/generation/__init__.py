"""Generation backends behind one asynchronous seam."""
