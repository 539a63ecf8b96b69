"""What every role shares: contracts, the model layer, routing. Imports nothing of ours outside itself."""
