"""How a run starts, stops and is kept from running twice."""
