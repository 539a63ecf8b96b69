"""What every role shares: contracts, the model layer, routing. Imports nothing else of ours."""
