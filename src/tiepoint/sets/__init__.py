"""Sets of photographs: match them with one another, and hand tie points to a reconstruction."""
